"""Tests the corrections' exact gradients against batches that are the population, and limits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias import corrected, exact
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten, fresh_and_stale, relative_error
from tests.helpers import correction_reference, reference

EXACT = [
    name for name, correction in registry.CORRECTIONS.items() if correction.has_exact_coefficients
]
# Parameters at which each correction acts on the drift of these tests.
OVERRIDES = {
    "gspo": {"clip_low": 0.1, "clip_high": 0.1},
    "token_tis": {"cap": 1.1},
    "sequence_tis": {"cap": 1.1},
    "token_mis": {"ratio_low": 0.8, "ratio_high": 1.2},
    "sequence_mis": {"ratio_low": 0.8, "ratio_high": 1.2},
    "negative_mask": {"delta": 0.05},
    "dppo_tv": {"probability_change": 0.05, "penalty": 0.1},
    "mu_grpo": {"veto_low": 0.8, "veto_high": 1.2},
    "m2po_authors": {"second_moment": 0.02, "clip_low": 0.01, "clip_high": 0.01},
    "m2po_areal": {"second_moment": 0.02},
    "sat": {"quantile": 0.6},
    "dual_clip": {"cap": 1.3},
    "dppo_kl": {"kl_threshold": 0.01, "cap": 1.2},
    "kpop": {"kl_threshold": 0.02},
    "dro": {"beta": 0.3},
}


def surrogate_config(name):
    correction = registry.CORRECTIONS[name]
    fixed = {
        "length_normalization": correction.length_normalization,
        "normalize_std": correction.normalize_std,
    }
    return dataclasses.replace(
        OBJECTIVE, **{key: value for key, value in fixed.items() if value is not None}
    )


@functools.cache
def dyadic_problem():
    """Makes a problem whose behavior probabilities are multiples of 1/16.

    So 16 equally likely slots enumerate its population.
    """
    problem, task, policy = problems.make(
        "tabular",
        group_size=2,
        vocab_size=3,
        num_prompts=1,
        reward_levels=(0.0, 0.5, 1.0),
        difficulty=0.4,
    )
    tokens_YxR, mask_YxR = task.responses
    conditional = np.array(
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]
    )
    prefix_YxR = np.stack([np.full(len(tokens_YxR), 3), tokens_YxR[:, 0]], axis=1)
    behavior = np.where(mask_YxR, np.log(conditional[prefix_YxR, tokens_YxR]), 0.0)[None]
    policy_logits = np.log(conditional) + np.random.default_rng(1).normal(
        scale=0.4, size=conditional.shape
    )
    policy_table = policy_logits - np.log(np.exp(policy_logits).sum(axis=-1, keepdims=True))
    policy_logprobs = np.where(mask_YxR, policy_table[prefix_YxR, tokens_YxR], 0.0)[None]
    copies_Y = np.rint(16 * np.exp(behavior[0].sum(axis=-1))).astype(int)
    assert copies_Y.sum() == 16
    return problem, task, policy_logprobs, behavior, np.repeat(np.arange(len(copies_Y)), copies_Y)


def all_groups():
    """Returns the responses [B] and rewards [B/G, G] of every group of slots."""
    problem, task, _, _, slots = dyadic_problem()
    groups_ZxG = slots[
        np.array(list(itertools.product(range(len(slots)), repeat=problem.group_size)))
    ]
    return groups_ZxG.ravel(), task.reward_table[0].astype(np.float64)[groups_ZxG]


@pytest.mark.parametrize("name", EXACT)
def test_matches_the_batch_that_is_the_population(name):
    """A batch of every group of equally likely slots has exactly the population's statistics."""
    problem, task, policy_logprobs, behavior_logprobs, _ = dyadic_problem()
    config, overrides = surrogate_config(name), OVERRIDES.get(name, {})
    responses_B, rewards_ZxG = all_groups()
    advantages_B = np.concatenate(
        [
            reference.group_advantages(list(g), config.normalize_std, config.std_epsilon)
            for g in rewards_ZxG
        ]
    )
    parameters = registry.parameters(name) | overrides
    if registry.uses_surrogate_clip(name):
        parameters |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
    policy, behavior = policy_logprobs[0][responses_B], behavior_logprobs[0][responses_B]
    batch = correction_reference.Batch(
        policy, behavior, policy, advantages_B, task.responses[1][responses_B]
    )
    _, slope = getattr(correction_reference, name)(batch, **parameters)
    lengths = batch.mask.sum(axis=1, keepdims=True)
    divisor = {"response": lengths, "constant": batch.mask.shape[1], "tokens": lengths.mean()}
    slope = slope / divisor[config.length_normalization] / len(responses_B)
    brute = np.zeros(policy_logprobs[0].shape)
    np.add.at(brute, responses_B, slope)

    coefficients = corrected.coefficients(problem, config, name, overrides)
    cotangent = exact.logprob_cotangent(
        problem, policy_logprobs, behavior_logprobs, config, coefficients
    )[0]
    assert np.linalg.norm(brute) > 1e-3
    # 1e-12: sums of 512 float64 terms
    np.testing.assert_allclose(cotangent, brute, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["grpo_clip", "sequence_is"])
def test_agrees_with_the_coefficients_written_out(name):
    problem, _, policy = problems.make("tabular", reward_levels=(0.0, 0.3, 1.0), difficulty=0.4)
    params, behavior_params = fresh_and_stale(policy, 0.4)
    written = {
        "grpo_clip": exact.clip_coefficients(OBJECTIVE),
        "sequence_is": exact.sequence_is_coefficients,
    }[name]
    derived = corrected.coefficients(problem, OBJECTIVE, name, {})
    ours, theirs = (
        jax.jit(exact.corrected_gradient, static_argnums=(3, 4))(
            problem, params, behavior_params, OBJECTIVE, c
        )
        for c in (derived, written)
    )
    assert relative_error(ours, theirs) < 1e-13


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.5])
def test_sequence_is_has_no_bias_without_group_statistics_and_only_those_with_them(scale):
    problem, _, policy = problems.make("tabular", reward_levels=(0.0, 0.3, 1.0), difficulty=0.4)
    params, behavior_params = fresh_and_stale(policy, scale)

    def residual(objective):
        coefficients = corrected.coefficients(problem, objective, "sequence_is", {})
        gradient = jax.jit(
            lambda phi: exact.corrected_gradient(problem, params, phi, objective, coefficients)
        )
        stale, fresh = gradient(behavior_params), gradient(params)
        return flatten(stale) - flatten(fresh)

    assert (
        jnp.linalg.norm(
            residual(SurrogateConfig(normalize_std=False, length_normalization="constant"))
        )
        < 1e-12
    )
    predicted = flatten(exact.group_statistics_bias(problem, params, behavior_params, OBJECTIVE))
    assert relative_error(residual(OBJECTIVE), predicted) < 1e-10


@pytest.mark.parametrize("name", EXACT)
def test_no_bias_on_policy(name):
    problem, _, policy_logprobs, _, _ = dyadic_problem()
    config = surrogate_config(name)
    coefficients = corrected.coefficients(problem, config, name, OVERRIDES.get(name, {}))
    plain = exact.logprob_cotangent(
        problem, policy_logprobs, policy_logprobs, config, exact.clip_coefficients(config)
    )
    ours = exact.logprob_cotangent(problem, policy_logprobs, policy_logprobs, config, coefficients)
    np.testing.assert_allclose(ours, plain, rtol=1e-12, atol=1e-16)


def test_what_reads_more_than_the_expected_advantages_is_refused():
    problem = dyadic_problem()[0]
    with pytest.raises(ValueError, match="r1_reward_stable_reinforce reads the size"):
        corrected.coefficients(problem, OBJECTIVE, "r1_reward_stable_reinforce", {})
    with pytest.raises(ValueError, match="^the baseline of opob reads the score .*: choose"):
        corrected.coefficients(problem, OBJECTIVE, "opob", {})


def test_large_batches_approach_the_population_of_a_batch_statistic():
    """SAT's bound is a quantile of the batch, so larger batches come closer to the limit."""
    problem, task, policy_logprobs, behavior_logprobs, _ = dyadic_problem()
    responses_B, rewards_ZxG = all_groups()
    config, rng = surrogate_config("sat"), np.random.default_rng(0)
    exact_cotangent = exact.logprob_cotangent(
        problem,
        policy_logprobs,
        behavior_logprobs,
        config,
        corrected.coefficients(problem, config, "sat", {}),
    )[0]
    correction = registry.bind("sat", config, {})

    groups_ZxG = responses_B.reshape(rewards_ZxG.shape)
    advantages_ZxG = np.array(
        [reference.group_advantages(list(g), True, config.std_epsilon) for g in rewards_ZxG]
    )
    mask_ZxGxR = task.responses[1][groups_ZxG]

    def error(num_groups):
        drawn = rng.integers(len(groups_ZxG), size=num_groups)

        def loss(logprobs):
            policy, behavior = logprobs[groups_ZxG[drawn]], behavior_logprobs[0][groups_ZxG[drawn]]
            advantages, mask = advantages_ZxG[drawn], mask_ZxGxR[drawn]
            return corrected_surrogate(
                policy, behavior, policy, advantages, mask, "response", correction
            )[0]

        return np.linalg.norm(
            -jax.jit(jax.grad(loss))(jnp.asarray(policy_logprobs[0])) - exact_cotangent
        )

    assert error(20_000) < 0.02 * np.linalg.norm(exact_cotangent) < error(100)
