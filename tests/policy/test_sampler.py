"""Tests the sampler: log-probabilities, noise, early stop, padding and frequencies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.sampler import first_largest, sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Prompts

V, P, R, N, G = 13, 6, 9, 5, 4
PAD, END = 11, 12
POLICY = Policy(
    TransformerConfig(
        vocab_size=V,
        num_layers=2,
        d_model=24,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        d_ff=40,
        qkv_bias=True,
    )
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(POLICY.init)(jax.random.key(0))


logprobs_of = jax.jit(response_logprobs, static_argnums=(0, 5))


def random_prompts(seed, num_prompts=N):
    rng = np.random.default_rng(seed)
    mask = np.arange(P) >= rng.integers(0, P, size=(num_prompts, 1))  # lengths 1 to P
    tokens = np.where(mask, rng.integers(0, PAD, (num_prompts, P)), PAD).astype(np.int32)
    return Prompts(tokens_NxP=tokens, mask_NxP=mask, index_N=np.arange(num_prompts, dtype=np.int32))


def draw(
    params,
    prompts,
    step=0,
    slots=None,
    seed=0,
    temperature=1.0,
    group_size=G,
    end_token=END,
    max_length=R,
):
    slots = (
        np.arange(len(prompts.index_N), dtype=np.int32)
        if slots is None
        else np.asarray(slots, np.int32)
    )
    return sample(
        POLICY,
        params,
        prompts,
        jax.random.key(seed),
        np.full_like(slots, step),
        slots,
        temperature,
        group_size=group_size,
        max_length=max_length,
        end_token=end_token,
        pad_token=PAD,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_learner_logprobs_equal_the_recorded_ones(params, seed, temperature):
    """At lag 0 the ratio is 1, with prompts of unequal length and responses that end early."""
    prompts = random_prompts(seed)
    responses = draw(params, prompts, step=seed, temperature=temperature)
    mask = np.asarray(responses.mask_NxGxR)
    lengths = mask.sum(-1)
    assert lengths.min() < lengths.max()
    policy_logprobs, entropy = logprobs_of(
        POLICY, params, prompts, responses.tokens_NxGxR, responses.mask_NxGxR, temperature
    )
    assert responses.behavior_logprobs_NxGxR.dtype == policy_logprobs.dtype == jnp.float32
    np.testing.assert_allclose(
        policy_logprobs, responses.behavior_logprobs_NxGxR, atol=1e-5, rtol=0
    )
    assert np.all(np.asarray(policy_logprobs)[mask] < 0)
    assert not np.any(np.asarray(policy_logprobs)[~mask]) and not np.any(np.asarray(entropy)[~mask])


def test_responses_end_once_and_are_padded(params):
    responses = draw(params, random_prompts(0))
    tokens, mask = np.asarray(responses.tokens_NxGxR), np.asarray(responses.mask_NxGxR)
    for row, used in zip(tokens.reshape(-1, R), mask.reshape(-1, R), strict=True):
        length = used.sum()
        assert used[:length].all()
        assert (row[length:] == PAD).all()
        assert (row[: length - 1] != END).all()
        assert row[length - 1] == END or length == R


def test_stops_when_all_have_ended(params):
    """With a head that always says END, the loop ends after one token."""
    biased = dict(params, head=jnp.zeros_like(params["head"]), embedding=params["embedding"])
    biased["head"] = biased["head"].at[:, END].set(1e3)
    biased["final_norm"] = {"scale": jnp.ones_like(params["final_norm"]["scale"])}
    # The logit of END is 1000 times the sum of the activations. The embedding makes that positive.
    biased["embedding"] = jnp.abs(params["embedding"]) + 5.0
    for name in params:
        if name.endswith(("attention", "mlp")):
            biased[name] = jax.tree.map(jnp.zeros_like, params[name])
    responses = draw(biased, random_prompts(0))
    assert (np.asarray(responses.mask_NxGxR).sum(-1) == 1).all()
    assert (np.asarray(responses.tokens_NxGxR)[:, :, 0] == END).all()


def test_fixed_length_without_end_token(params):
    responses = draw(params, random_prompts(0), end_token=None)
    assert np.asarray(responses.mask_NxGxR).all()


def test_noise_belongs_to_seed_step_and_slot(params):
    prompts = random_prompts(0)
    base = draw(params, prompts)
    again = draw(params, prompts)
    np.testing.assert_array_equal(base.tokens_NxGxR, again.tokens_NxGxR)
    for changed in (dict(step=1), dict(seed=1), dict(slots=[5, 6, 7, 8, 9])):
        other = draw(params, prompts, **changed)
        assert np.any(base.tokens_NxGxR != other.tokens_NxGxR)


def test_a_group_does_not_depend_on_its_batch(params):
    """The group of slot 3 is the same in another order and among other groups."""
    prompts = random_prompts(0)
    base = draw(params, prompts)
    order = np.array([3, 0, 3, 1, 4])
    shuffled = jax.tree.map(lambda leaf: leaf[order], prompts)
    mixed = draw(params, shuffled, slots=order)
    np.testing.assert_array_equal(mixed.tokens_NxGxR, np.asarray(base.tokens_NxGxR)[order])


def test_padding_amount_does_not_matter(params):
    """The same prompt with more padding on its left gets the same answers."""
    tokens = np.array([[1, 2, 3]], np.int32)
    short = Prompts(
        tokens_NxP=tokens, mask_NxP=np.ones((1, 3), bool), index_N=np.zeros(1, np.int32)
    )
    padded_tokens = np.pad(tokens, ((0, 0), (3, 0)), constant_values=PAD)
    padded = Prompts(
        tokens_NxP=padded_tokens, mask_NxP=padded_tokens != PAD, index_N=np.zeros(1, np.int32)
    )
    a, b = draw(params, short), draw(params, padded)
    np.testing.assert_array_equal(a.tokens_NxGxR, b.tokens_NxGxR)
    np.testing.assert_allclose(a.behavior_logprobs_NxGxR, b.behavior_logprobs_NxGxR, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_follow_the_policy(params, temperature):
    """Tests first tokens of 16,000 samples against softmax(logits / temperature) by chi-squared."""
    prompts = random_prompts(4, num_prompts=1)
    responses = draw(params, prompts, group_size=16_000, max_length=1, temperature=temperature)
    counts = np.bincount(np.asarray(responses.tokens_NxGxR).ravel(), minlength=V)
    logits = jax.jit(POLICY.response_logits)(
        params, prompts.tokens_NxP, prompts.mask_NxP, np.zeros((1, 1, 1), int)
    )
    expected = 16_000 * np.asarray(jax.nn.softmax(logits[0, 0, 0] / temperature), np.float64)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 32.9  # the 0.999 quantile of chi-squared with 12 degrees of freedom


def test_recorded_logprobs_are_float64_under_x64():
    with jax.enable_x64(True):
        policy = Policy(dataclasses.replace(POLICY.config, dtype="float64", param_dtype="float64"))
        params = jax.jit(policy.init)(jax.random.key(0))
        prompts, slots = random_prompts(0), np.arange(N, dtype=np.int32)
        responses = sample(
            policy,
            params,
            prompts,
            jax.random.key(0),
            slots,
            slots,
            1.0,
            group_size=G,
            max_length=R,
            end_token=END,
            pad_token=PAD,
        )
        logprobs, _ = logprobs_of(
            policy, params, prompts, responses.tokens_NxGxR, responses.mask_NxGxR, 1.0
        )
        assert responses.behavior_logprobs_NxGxR.dtype == jnp.float64
        np.testing.assert_allclose(logprobs, responses.behavior_logprobs_NxGxR, atol=1e-13, rtol=0)


def test_first_largest_takes_the_first_of_equals():
    np.testing.assert_array_equal(
        first_largest(jnp.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]])), [1, 0]
    )
