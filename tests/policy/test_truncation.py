"""Tests top-k, top-p and the tokenizer's mask: kept sets, frequencies, values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.logprobs import log_distribution, response_logprobs, token_logprobs
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.policy.truncation import (
    Truncation,
    kept_tokens,
    truncated_distribution,
    truncated_logprobs,
)
from staleness_grpo.types import Prompts
from tests.policy.examples import random_params

V, P, R, N, G = 13, 3, 6, 4, 5
PAD, END = 11, 12
POLICY = Policy(
    TransformerConfig(
        vocab_size=V, num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16
    )
)
WIDE = Policy(dataclasses.replace(POLICY.config, dtype="float64", param_dtype="float64"))
TRUNCATIONS = [
    Truncation(top_p=0.8),
    Truncation(top_k=3),
    Truncation(top_p=0.7, top_k=5, num_tokens=10),
    Truncation(num_tokens=12),
]


@pytest.mark.parametrize(
    ("probs", "truncation", "kept"),
    [
        ([0.5, 0.25, 0.125, 0.125], Truncation(), "1111"),
        ([0.5, 0.25, 0.125, 0.125], Truncation(top_p=0.5), "1000"),  # the mass is reached exactly
        ([0.5, 0.25, 0.125, 0.125], Truncation(top_p=0.51), "1100"),
        ([0.125, 0.5, 0.125, 0.25], Truncation(top_p=0.75), "0101"),
        ([0.5, 0.25, 0.125, 0.125], Truncation(top_p=0.8), "1111"),  # equals are kept together
        ([0.25, 0.25, 0.25, 0.25], Truncation(top_p=1e-9), "1111"),
        ([0.6, 0.2, 0.1, 0.1], Truncation(top_p=1e-9), "1000"),  # never nothing
        ([0.1, 0.2, 0.3, 0.4], Truncation(top_k=1), "0001"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(top_k=3), "0111"),
        ([0.25, 0.5, 0.125, 0.125], Truncation(top_k=3), "1111"),  # equals are kept together
        ([0.1, 0.2, 0.3, 0.4], Truncation(top_k=9), "1111"),
        # Of 0.4 and 0.3, the first has 4/7 of the mass: enough after top-k, and not without it.
        ([0.1, 0.2, 0.3, 0.4], Truncation(top_k=2, top_p=0.57), "0001"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(top_p=0.57), "0011"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(num_tokens=3), "1110"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(num_tokens=3, top_k=1), "0010"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(num_tokens=2, top_k=3), "1100"),
        ([0.1, 0.2, 0.3, 0.4], Truncation(num_tokens=3, top_p=0.5), "0010"),
    ],
)
def test_kept_sets_of_literal_distributions(probs, truncation, kept):
    expected = np.array([mark == "1" for mark in kept])
    logits = jnp.log(jnp.array(probs)) + 3.0
    np.testing.assert_array_equal(kept_tokens(logits, truncation), expected)
    distribution = np.asarray(truncated_distribution(logits, 1.0, truncation))
    renormalized = np.where(expected, probs, 0) / np.sum(np.array(probs)[expected])
    np.testing.assert_allclose(np.exp(distribution), renormalized, rtol=1e-6)


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.05])
@pytest.mark.parametrize("top_k", [0, 1, 7, 60, 1000])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_kept_sets_are_those_of_transformers(top_p, top_k, temperature):
    reason = "needs transformers and torch, of the extra hf"
    torch = pytest.importorskip("torch", reason=reason)
    warpers = pytest.importorskip("transformers.generation.logits_process", reason=reason)
    logits = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32) * 2
    theirs = torch.from_numpy(logits.copy())
    theirs = warpers.TemperatureLogitsWarper(temperature)(None, theirs)
    if top_k:
        theirs = warpers.TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = warpers.TopPLogitsWarper(top_p)(None, theirs)
    distribution = truncated_distribution(logits, temperature, Truncation(top_p, top_k))
    np.testing.assert_array_equal(np.isfinite(distribution), np.isfinite(theirs.numpy()))
    np.testing.assert_allclose(
        np.exp(distribution), torch.softmax(theirs, -1).numpy(), rtol=1e-5, atol=1e-7
    )


# Operation by operation, these would be compiled in hundreds of programs.
first_logits = jax.jit(POLICY.response_logits)
wide_logits = jax.jit(WIDE.response_logits)
wide_logprobs = jax.jit(
    functools.partial(response_logprobs, WIDE), static_argnames=("temperature", "truncation")
)
distribution_of = jax.jit(truncated_distribution, static_argnums=2)
learner_logprobs = jax.jit(truncated_logprobs, static_argnums=3)


def numpy_logprobs(logits, temperature, truncation):
    """Returns log pi of one truncated distribution [V], token by token in float64."""
    x = np.asarray(logits, np.float64) / temperature
    tokens = [token for token in range(len(x)) if token < (truncation.num_tokens or len(x))]
    tokens.sort(key=lambda token: -x[token])
    tokens = tokens[: truncation.top_k or None]
    weights = np.exp(x[tokens] - x[tokens].max())
    kept, mass = [], 0.0
    for token, weight in zip(tokens, weights / weights.sum(), strict=True):
        if mass >= truncation.top_p:
            break
        kept.append(token)
        mass += weight
    result = np.full(len(x), -np.inf)
    result[kept] = x[kept] - np.log(np.exp(x[kept] - x[kept].max()).sum()) - x[kept].max()
    return result


def prompts_of(num_prompts=N):
    tokens = np.random.default_rng(0).integers(0, PAD, (num_prompts, P)).astype(np.int32)
    return Prompts(tokens, np.ones((num_prompts, P), bool), np.arange(num_prompts))


def draw(policy, params, truncation, temperature=1.0, group_size=G, length=R, num_prompts=N):
    slots = np.arange(num_prompts, dtype=np.int32)
    return sample(
        policy,
        params,
        prompts_of(num_prompts),
        jax.random.key(3),
        slots * 0,
        slots,
        temperature,
        group_size=group_size,
        max_length=length,
        end_token=END if length > 1 else None,
        pad_token=PAD,
        truncation=truncation,
    )


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_samples_follow_the_truncated_distribution(truncation, temperature):
    """Tests the first tokens of 16,000 samples by chi-squared, with a fixed seed."""
    params = random_params(POLICY)
    responses = draw(POLICY, params, truncation, temperature, 16_000, 1, 1)
    counts = np.bincount(np.asarray(responses.tokens_NxGxR).ravel(), minlength=V)
    prompts = prompts_of(1)
    logits = first_logits(params, prompts.tokens_NxP, prompts.mask_NxP, np.zeros((1, 1, 1), int))[
        0, 0, 0
    ]
    expected = 16_000 * np.exp(numpy_logprobs(logits, temperature, truncation))
    inside = expected > 0
    assert 1 < inside.sum() < V and not counts[~inside].any()
    statistic = np.sum((counts - expected)[inside] ** 2 / expected[inside])
    assert statistic < 32.9  # the 0.999 quantile with 12 degrees of freedom; there are fewer


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_recorded_logprobs_are_numpys_and_the_ratio_at_lag_0_is_1(truncation):
    """With the same truncation the learner gets the recorded log-probabilities.

    With the full distribution it gets lower ones, by the log of the mass that is kept.
    """
    with jax.enable_x64(True):
        params = random_params(WIDE)
        prompts = prompts_of()
        responses = draw(WIDE, params, truncation, 0.8)
        tokens, mask = np.asarray(responses.tokens_NxGxR), np.asarray(responses.mask_NxGxR)
        recorded = np.asarray(responses.behavior_logprobs_NxGxR)
        logits = np.asarray(wide_logits(params, prompts.tokens_NxP, prompts.mask_NxP, tokens))
        places = np.argwhere(mask)
        assert len(places) > N * G
        for place in map(tuple, places):
            expected = numpy_logprobs(logits[place], 0.8, truncation)[tokens[place]]
            np.testing.assert_allclose(recorded[place], expected, rtol=0, atol=1e-12)
        ours, entropy = wide_logprobs(
            params, prompts, tokens, mask, temperature=0.8, truncation=truncation
        )
        # The decoder gives logits of many positions, and of one: they differ by rounding alone.
        np.testing.assert_allclose(ours, recorded, rtol=0, atol=1e-12)
        assert not np.any(np.asarray(entropy)[~mask]) and np.all(np.asarray(entropy)[mask] > 0)
        full, _ = wide_logprobs(params, prompts, tokens, mask, temperature=0.8)
        assert np.all((np.asarray(full) < recorded - 1e-6)[mask])


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_the_noise_is_that_of_the_full_distribution(truncation):
    """A response whose full twin stays inside the kept sets is its twin."""
    params = random_params(POLICY)
    whole, ours = draw(POLICY, params, None), draw(POLICY, params, truncation)
    first_whole, first = whole.tokens_NxGxR[..., 0], ours.tokens_NxGxR[..., 0]
    prompts = prompts_of()
    logits = first_logits(params, prompts.tokens_NxP, prompts.mask_NxP, np.zeros((N, G, 1), int))[
        :, :, 0
    ]
    kept = np.asarray(kept_tokens(logits, truncation))
    stays = np.take_along_axis(kept, np.asarray(first_whole)[..., None], axis=-1)[..., 0]
    assert stays.any()
    np.testing.assert_array_equal(np.asarray(first)[stays], np.asarray(first_whole)[stays])


LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("token", "truncation", "members"),
    [
        (0, Truncation(top_k=2), (0, 1)),
        (1, Truncation(top_p=0.5), (0, 1)),
        (2, Truncation(top_k=2), (0, 1, 2)),  # removed: it is put back for itself
        (3, Truncation(top_p=0.5), (0, 1, 3)),
        (3, Truncation(num_tokens=2), (0, 1, 3)),
        (1, Truncation(num_tokens=3, top_p=0.9), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_values_and_gradients_of_the_learner(token, truncation, members, temperature):
    """The log-probability is that of the kept set with the token, and so is its gradient."""
    members = list(members)
    if temperature == 0.5 and truncation.top_p == 0.5:  # 0.16 / 0.30 is more than a half
        members.remove(1) if token != 1 else None
    powers = np.exp(LOGITS / temperature)
    probs = np.zeros(4)
    probs[members] = powers[members] / powers[members].sum()
    with jax.enable_x64(True):

        def logprob(logits):
            return learner_logprobs(logits, jnp.array(token), temperature, truncation)[0]

        value, gradient = jax.value_and_grad(logprob)(jnp.array(LOGITS))
        np.testing.assert_allclose(value, np.log(probs[token]), rtol=0, atol=1e-14)
        expected = ((np.arange(4) == token) - probs) / temperature
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-14)
        steps = 1e-6 * np.eye(4)
        differences = [(logprob(LOGITS + s) - logprob(LOGITS - s)) / 2e-6 for s in steps]
        np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-8)


def test_the_entropy_is_that_of_the_kept_set_and_has_no_gradient():
    def entropy(logits, token):
        return learner_logprobs(logits, jnp.array(token), 1.0, Truncation(top_k=2))[1]

    expected = -(4 / 7 * np.log(4 / 7) + 3 / 7 * np.log(3 / 7))
    for token in range(4):  # also of a token that is not in the set
        np.testing.assert_allclose(entropy(jnp.array(LOGITS), token), expected, rtol=1e-6)
        np.testing.assert_array_equal(jax.grad(entropy)(jnp.array(LOGITS), token), 0)


def test_neutral_values_give_the_full_distribution():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(20, V)), jnp.float32)
    tokens = jnp.arange(20) % V
    ours, _ = learner_logprobs(logits, tokens, 0.7, Truncation())
    full = token_logprobs(log_distribution(logits, 0.7), tokens)
    np.testing.assert_allclose(ours, full, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_logits_that_are_not_numbers_are_not_hidden(truncation):
    logits = jnp.full((V,), jnp.nan).at[2].set(1.0)
    known = slice(truncation.num_tokens)
    assert np.all(np.isnan(distribution_of(logits, 1.0, truncation)[known]))
    for token in (2, 3):
        assert np.isnan(learner_logprobs(logits, jnp.array(token), 1.0, truncation)[0])


def test_a_policy_that_is_not_finite_samples_tokens_of_the_task():
    params = jax.tree.map(lambda leaf: leaf * np.nan, random_params(POLICY))
    responses = draw(POLICY, params, Truncation(num_tokens=10))
    tokens = np.asarray(responses.tokens_NxGxR)
    assert tokens.max() < 10 and np.all(np.isnan(responses.behavior_logprobs_NxGxR))


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_large_logits_and_removed_ones_leave_finite_gradients(temperature):
    logits = jnp.array([900.0, 899.0, -900.0, 1000.0])
    truncation = Truncation(top_p=0.9, num_tokens=3)
    for token in range(4):

        def logprob(logits, token=token):
            return learner_logprobs(logits, jnp.array(token), temperature, truncation)[0]

        value, gradient = jax.value_and_grad(logprob)(logits)
        assert np.isfinite(value) and value <= 0 and np.all(np.isfinite(gradient))
