"""Compares log-probabilities with those of the plain path.

They come from chunks of the vocabulary, from rematerialized layers, and from microbatches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.surrogate import LENGTH_NORMALIZATIONS, SurrogateConfig
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.logprobs import (
    chunked_logprobs,
    log_distribution,
    response_logprobs,
    token_logprobs,
    vocabulary_chunks,
)
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.training.loss import surrogate_loss
from tests.policy.examples import equations, random_params, random_rollout

PLAIN = TransformerConfig(
    vocab_size=12,
    num_layers=1,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_ff=8,
    dtype="float64",
    param_dtype="float64",
)


@pytest.mark.parametrize("num_chunks", [2, 4, 12])
def test_chunks_of_the_vocabulary_give_the_whole_distribution(num_chunks):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        hidden, head = (
            jnp.asarray(rng.normal(size=(7, 5))),
            jnp.asarray(rng.normal(size=(12, 5)) * 4),
        )
        hidden = hidden.at[3].mul(200.0)  # logits of a thousand: no sum may overflow
        tokens, weights = jnp.asarray(rng.integers(0, 12, 7)), jnp.asarray(rng.normal(size=7))

        def plain(hidden, head):
            logprobs = log_distribution(hidden @ head.T, 0.7)
            return token_logprobs(logprobs, tokens), -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)

        def chunked(hidden, head):
            return chunked_logprobs(hidden, vocabulary_chunks(head, num_chunks), tokens, 0.7)

        def total(function):
            return jax.jit(jax.grad(lambda h, w: jnp.sum(weights * function(h, w)[0]), (0, 1)))(
                hidden, head
            )

        for ours, expected in zip(
            jax.jit(chunked)(hidden, head), jax.jit(plain)(hidden, head), strict=True
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
        for ours, expected in zip(total(chunked), total(plain), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)
        entropy_slope = jax.grad(lambda h: jnp.sum(chunked(h, head)[1]))(hidden)
        np.testing.assert_array_equal(entropy_slope, 0)


@pytest.mark.parametrize("num_chunks", [1, 64])
def test_in_bfloat16_only_the_products_are(num_chunks):
    """Compares with float64 on the same bfloat16 numbers.

    Log-probabilities agree to float32, and gradients to a few roundings to 8 bits each.
    """
    rng = np.random.default_rng(2)
    size, width, tokens = 512, 64, rng.integers(0, 512, 32)
    hidden, head = (
        jnp.asarray(rng.normal(size=(rows, width)), jnp.bfloat16) for rows in (32, size)
    )

    def evaluate(hidden, head):
        def total(hidden, head):
            logprobs, entropy = chunked_logprobs(
                hidden, vocabulary_chunks(head, num_chunks), tokens, 1.0
            )
            return jnp.sum(logprobs * jnp.linspace(0.5, 1.5, 32)), (logprobs, entropy)

        gradients, values = jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, head)
        return [np.asarray(x, np.float64) for x in (*values, *gradients)]

    ours = evaluate(hidden, head)
    with jax.enable_x64(True):
        exact = evaluate(np.asarray(hidden, np.float64), np.asarray(head, np.float64))
    for value, expected in zip(ours[:2], exact[:2], strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    for gradient, expected in zip(ours[2:], exact[2:], strict=True):
        error = np.sqrt(np.mean((gradient - expected) ** 2) / np.mean(expected**2))
        # A rounding to 8 bits is off by 2**-8 / sqrt(3) at most, and there are two.
        assert error < 2**-8 * 0.75


@pytest.mark.parametrize(("tied", "remat"), [(False, "blocks"), (True, "attention")])
def test_responses_in_chunks_and_rematerialized(tied, remat):
    rollout = random_rollout()
    responses = rollout.responses
    with jax.enable_x64(True):
        config = dataclasses.replace(PLAIN, tie_embeddings=tied)
        params = random_params(Policy(config))

        def evaluate(config):
            def total(params):
                logprobs, entropy = response_logprobs(
                    Policy(config),
                    params,
                    rollout.prompts,
                    responses.tokens_NxGxR,
                    responses.mask_NxGxR,
                    0.9,
                )
                return jnp.sum(jnp.sin(logprobs)), (logprobs, entropy)

            return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

        ours = evaluate(dataclasses.replace(config, vocab_chunks=3, remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13),
            ours,
            evaluate(config),
        )


@pytest.mark.parametrize(
    "length_normalization",  # the hardest of them is always run: its weights need the whole batch
    [
        pytest.param(name, marks=() if name == "tokens" else pytest.mark.slow)
        for name in LENGTH_NORMALIZATIONS
    ],
)
def test_microbatches_give_loss_gradient_and_diagnostics_of_the_whole_batch(length_normalization):
    """Takes 2 of 6 groups at a time, and 4 (cut down to 2).

    Lengths and rewards differ between groups, so that a mean over microbatches would be wrong.
    """
    compare_microbatches(SurrogateConfig(length_normalization=length_normalization), None, (2, 4))


def test_microbatches_of_a_correction_that_reads_the_whole_batch():
    correction = default_config().correction
    correction.name, correction.second_moment = "m2po_areal", 0.2
    compare_microbatches(SurrogateConfig(), correction, (2,))


def compare_microbatches(surrogate, correction, sizes):
    rollout = random_rollout()
    with jax.enable_x64(True):
        policy = Policy(PLAIN)
        params = random_params(policy)

        def evaluate(**microbatch):
            loss_fn = surrogate_loss(policy, surrogate, 1.0, correction, **microbatch)

            def multiple(params):
                loss, diagnostics = loss_fn(params, rollout)
                return 3 * loss, diagnostics

            return jax.jit(jax.value_and_grad(multiple, has_aux=True))(params)

        whole = evaluate()
        assert 0 < whole[0][1]["clip_fraction"] < 1 and np.isfinite(whole[0][0])
        for size in sizes:
            ours = evaluate(microbatch_prompts=size)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), ours, whole
            )


def test_diagnostics_are_means_over_tokens_groups_and_responses():
    rollout = random_rollout()
    mask, rewards = rollout.responses.mask_NxGxR, np.asarray(rollout.rewards_NxG)
    with jax.enable_x64(True):
        policy = Policy(PLAIN)
        params = random_params(policy)
        diagnostics = jax.jit(surrogate_loss(policy, SurrogateConfig(), 0.8))(params, rollout)[1]
        responses = rollout.responses.tokens_NxGxR
        logits = jax.jit(policy.response_logits)(
            params, rollout.prompts.tokens_NxP, rollout.prompts.mask_NxP, responses
        )
    probs = np.exp(np.asarray(logits) / 0.8)
    probs /= probs.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        diagnostics["entropy"], -(probs * np.log(probs)).sum(axis=-1)[mask].mean(), rtol=1e-12
    )
    np.testing.assert_allclose(diagnostics["reward"], rewards.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        diagnostics["reward_std_in_group"], np.std(rewards, axis=1).mean(), rtol=1e-12
    )
    assert float(diagnostics["response_length"]) == mask.sum() / mask[..., 0].size


def test_one_pass_over_the_microbatches_is_enough():
    """Counts the policy's products: microbatches need no more of them than the whole batch."""

    def products(microbatch_prompts, correction):
        loss_fn = surrogate_loss(
            Policy(PLAIN), SurrogateConfig(), 1.0, correction, microbatch_prompts
        )
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss_fn(p, random_rollout())[0]))(
            random_params(Policy(PLAIN))
        )
        return sum(e.primitive.name == "dot_general" for e in equations(jaxpr.jaxpr))

    with jax.enable_x64(True):
        whole_batch = default_config().correction
        whole_batch.name = "sat"  # reads the log-probabilities of the whole batch
        assert products(2, None) == products(0, None) == products(0, whole_batch)
        assert products(0, whole_batch) < products(2, whole_batch)


def shapes_of_large_arrays(config, num_elements):
    """Returns the shapes of the arrays that an update makes with at least so many elements."""
    policy = Policy(config)
    rollout = random_rollout(4, 2, 8)
    loss_fn = surrogate_loss(policy, SurrogateConfig(), 1.0)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss_fn(p, rollout)[0]))(random_params(policy))
    shapes = [v.aval for equation in equations(jaxpr.jaxpr) for v in equation.outvars]
    return {aval.shape for aval in shapes if aval.size >= num_elements}


def test_logits_of_the_whole_batch_never_exist_at_once():
    config = dataclasses.replace(PLAIN, vocab_size=256, dtype="float32", param_dtype="float32")
    num_logits = 4 * 2 * 8 * 256
    assert shapes_of_large_arrays(config, num_logits)  # with one chunk they do
    chunked = dataclasses.replace(config, vocab_chunks=4)
    assert not shapes_of_large_arrays(chunked, num_logits)
