"""The optimal baseline on enumerable problems: scores, its expected variance, and batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias.enumeration import response_logprobs, score_norms
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.objective.advantages import group_advantages, optimal_baseline_weights
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from tests.bias import problems
from tests.bias.problems import fresh_and_stale

CONSTANT = SurrogateConfig(length_normalization="constant", normalize_std=False)


def stale_problem(name, scale=0.5):
    """Returns (problem, theta, log pi_theta, log pi_phi) with three levels of reward."""
    problem, _, policy = problems.make(name, reward_levels=(0.0, 0.3, 1.0), difficulty=0.4)
    params, behavior_params = fresh_and_stale(policy, scale)
    logprobs = (problems.logprobs(problem, p) for p in (params, behavior_params))
    return problem, params, *logprobs


def test_score_norms_of_a_table_are_analytic():
    """A token of probability p has the squared norm 1 - 2 p + sum q^2 over the vocabulary."""
    problem, task, policy = problems.make("tabular")
    params = problems.initial_params(policy)
    tokens_YxR, mask_YxR = task.responses
    expected = np.zeros((task.num_prompts, len(tokens_YxR)))
    for n, prompt in enumerate(task.prompts(np.arange(task.num_prompts)).tokens_NxP):
        for y, tokens in enumerate(tokens_YxR):
            logits = policy.apply(params, np.concatenate([prompt, tokens])[None])[0]
            q_TxV = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
            for t in np.flatnonzero(mask_YxR[y]):
                q_V = q_TxV[len(prompt) + t - 1]
                expected[n, y] += 1 - 2 * q_V[tokens[t]] + np.sum(q_V**2)
    found = jax.jit(score_norms)(problem, params)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_score_norms_of_a_network_are_finite_differences():
    problem, params, logprobs, _ = stale_problem("transformer")
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    log_probability = jax.jit(
        jax.vmap(lambda theta: response_logprobs(problem, unravel(theta)).sum(axis=-1))
    )
    steps = 1e-5 * jnp.eye(flat.size)
    change = log_probability(flat[None] + steps) - log_probability(flat[None] - steps)
    expected = jnp.sum((change / 2e-5) ** 2, axis=0)
    # The error of central differences is of order 1e-10 times the third derivative.
    np.testing.assert_allclose(jax.jit(score_norms)(problem, params), expected, rtol=1e-6)
    assert logprobs.shape[:2] == expected.shape


@pytest.mark.slow
def test_as_a_constant_it_has_the_least_variance():
    """Enumerates W (R - b) grad log pi under phi, with b of the population."""
    problem, params, policy_logprobs, behavior_logprobs = stale_problem("transformer")
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    scores_NxYxD = jax.jit(
        jax.jacrev(lambda theta: response_logprobs(problem, unravel(theta)).sum(axis=-1))
    )(flat)
    rewards_NxY = jnp.asarray(problem.levels_M)[problem.level_NxY]
    weights_NxY = jnp.exp(jnp.sum(policy_logprobs - behavior_logprobs, axis=-1))
    probs_NxY = jnp.exp(jnp.sum(behavior_logprobs, axis=-1))

    def variance_and_mean(advantages_NxY):
        terms = (weights_NxY * advantages_NxY)[..., None] * scores_NxYxD
        mean = jnp.sum(probs_NxY[..., None] * terms, axis=1)
        square = jnp.sum(probs_NxY * jnp.sum(terms**2, axis=-1), axis=1)
        return square - jnp.sum(mean**2, axis=-1), mean

    def advantages(weights):
        return group_advantages(
            rewards_NxY, normalize_std=False, std_epsilon=1e-4, baseline_weights_NxG=weights
        )

    mask = jnp.broadcast_to(problem.mask_YxR, policy_logprobs.shape)
    norms = score_norms(problem, params)
    optimal = optimal_baseline_weights(policy_logprobs, behavior_logprobs, mask, norms)
    best, mean_of_best = variance_and_mean(advantages(probs_NxY * optimal))
    usual, mean_of_usual = variance_and_mean(advantages(probs_NxY))
    on_policy, _ = variance_and_mean(advantages(probs_NxY * norms))  # without W
    assert (best < 0.999 * usual).all() and (best < on_policy).all()
    for change in (-0.01, 0.01):
        assert (best < variance_and_mean(advantages(probs_NxY * optimal) + change)[0]).all()
    # A constant changes no mean, because the expectation of W grad log pi is 0.
    np.testing.assert_allclose(mean_of_best, mean_of_usual, atol=1e-12)


def test_a_sampled_batch_is_a_group_with_this_baseline():
    """Every sampled cotangent is one of the groups, whose gradients are written out here."""
    problem, params, policy_logprobs, behavior_logprobs = stale_problem("tabular")
    norms = np.asarray(jax.jit(score_norms)(problem, params))
    objective = registry.bind("opob", CONSTANT, {})
    sample = jax.jit(
        lambda key: sampled_cotangent(
            problem, policy_logprobs, behavior_logprobs, CONSTANT, 1, key, objective, norms
        )
    )
    w_NxY = np.exp(np.sum(policy_logprobs - behavior_logprobs, axis=-1))
    rewards_NxY = problem.levels_M[problem.level_NxY]
    size, length = problem.group_size, problem.mask_YxR.shape[1]
    seen = 0
    for seed in range(20):
        cotangent = np.asarray(sample(jax.random.key(seed)))[..., 0]  # of the first tokens
        n = int(np.argmax(np.abs(cotangent).sum(axis=1)))
        members = np.flatnonzero(cotangent[n])
        if len(members) != size:  # a response came twice, or has advantage 0
            continue
        v = w_NxY[n, members] ** 2 * norms[n, members]
        advantages = rewards_NxY[n, members] - v @ rewards_NxY[n, members] / v.sum()
        expected = np.minimum(w_NxY[n, members], 8.0) * advantages / (size * length)
        np.testing.assert_allclose(cotangent[n, members], expected, rtol=1e-12)
        seen += 1
    assert seen >= 3
