"""Tests the exact surrogate gradient against brute force, autodiff and theory."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import expected_reward
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig, grpo_surrogate
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten, fresh_and_stale, relative_error
from tests.helpers import reference

CONSTANT_NO_STD = {"length_normalization": "constant", "normalize_std": False}
# name -> (policy, group size, fields of the task, fields of the objective)
CASES = {
    "two_levels": ("tabular", 4, {"variable_length": False}, {}),
    "three_levels": ("tabular", 3, {"reward_levels": (0.0, 0.3, 1.0), "difficulty": 0.4}, {}),
    "variable_length": ("tabular", 4, {}, {}),
    "tokens": ("tabular", 3, {}, {"length_normalization": "tokens"}),
    "constant_no_std": ("tabular", 3, {}, CONSTANT_NO_STD),
    "longer": ("tabular", 2, {"max_response_length": 3, "num_prompts": 4}, {}),
    "transformer": ("transformer", 3, {}, {}),
    "transformer_three_levels": (
        "transformer",
        3,
        {"reward_levels": (-1.0, 0.0, 2.0), "difficulty": 0.4},
        {},
    ),
}


def build(name):
    policy_name, group_size, task_fields, objective_fields = CASES[name]
    problem, task, policy = problems.make(policy_name, group_size, **task_fields)
    return problem, task, policy, dataclasses.replace(OBJECTIVE, **objective_fields)


def brute_force(problem, task, policy, params, behavior_params, objective):
    """Returns (L, dL/dlog pi) by NumPy over all groups.

    The log-probabilities are those of whole sequences.
    """
    logprobs = [
        np.asarray(problems.full_sequence_logprobs(policy, task, p))
        for p in (params, behavior_params)
    ]
    return reference.population_surrogate(
        *logprobs,
        task.responses[1],
        task.reward_table.astype(np.float64),
        problem.group_size,
        **dataclasses.asdict(objective),
    )


@pytest.mark.parametrize("name", CASES)
def test_matches_brute_force_over_all_groups(name):
    problem, task, policy, objective = build(name)
    params, behavior_params = fresh_and_stale(policy, 0.4)
    value, cotangent = brute_force(problem, task, policy, params, behavior_params, objective)
    logprobs = [problems.logprobs(problem, p) for p in (params, behavior_params)]
    assert 0.05 < problems.clip_fraction(problem, *logprobs, objective) < 0.9  # the clip is in play

    expected = problems.pulled_back(policy, task, params, cotangent)
    # 1e-12: some thousands of terms of float64 rounding.
    assert (
        relative_error(
            problems.surrogate_gradient(problem, params, behavior_params, objective), expected
        )
        < 1e-12
    )
    np.testing.assert_allclose(
        problems.surrogate(problem, params, behavior_params, objective), value, rtol=1e-12
    )
    assert (
        relative_error(
            problems.policy_gradient_of_surrogate(problem, params, behavior_params, objective),
            expected,
        )
        < 1e-12
    )


def inverted_ratio(objective):
    correct = exact.clip_coefficients(objective)
    return lambda policy_logprobs, behavior_logprobs: correct(behavior_logprobs, policy_logprobs)


def swapped_bounds(objective):
    return exact.clip_coefficients(
        dataclasses.replace(objective, clip_low=objective.clip_high, clip_high=objective.clip_low)
    )


def swapped_signs(objective):
    return lambda *logprobs: exact.clip_coefficients(objective)(*logprobs)[::-1]


def no_clip(objective):
    return exact.clip_coefficients(dataclasses.replace(objective, clip_low=0.999, clip_high=1e6))


@pytest.mark.parametrize("mutation", [inverted_ratio, swapped_bounds, swapped_signs, no_clip])
def test_brute_force_rejects_wrong_coefficients(mutation):
    problem, task, policy, objective = build("variable_length")
    params, behavior_params = fresh_and_stale(policy, 0.4)
    _, cotangent = brute_force(problem, task, policy, params, behavior_params, objective)
    logprobs = problems.logprobs(problem, params), problems.logprobs(problem, behavior_params)

    @jax.jit
    def mutated(problem, *logprobs):
        return exact.logprob_cotangent(problem, *logprobs, objective, mutation(objective))

    assert relative_error(mutated(problem, *logprobs), cotangent) > 1e-2


@pytest.mark.parametrize("name", ["two_levels", "variable_length", "transformer_three_levels"])
def test_matches_autodiff_of_the_literal_surrogate(name):
    """The reference is jax.grad through the training loss of every group, by its probability."""
    problem, task, policy, objective = build(name)
    params, behavior_params = fresh_and_stale(policy, 0.4)
    groups_ZxG = np.array(
        list(itertools.product(range(len(task.responses[0])), repeat=problem.group_size))
    )
    mask_ZxGxR = task.responses[1][groups_ZxG]
    behavior_logprobs = problems.logprobs(problem, behavior_params)
    rewards_NxZxG = jnp.asarray(task.reward_table, jnp.float64)[:, groups_ZxG]
    advantages_NxZxG = group_advantages(
        rewards_NxZxG, normalize_std=objective.normalize_std, std_epsilon=objective.std_epsilon
    )
    group_probs_NxZ = jnp.exp(jnp.sum(behavior_logprobs[:, groups_ZxG], axis=(-1, -2)))

    def literal(params):
        policy_logprobs = problems.logprobs(problem, params)
        loss_of_group = jax.vmap(lambda *arrays: grpo_surrogate(*arrays, objective)[0])
        losses_NxZ = jax.vmap(loss_of_group, in_axes=(0, 0, 0, None))(
            policy_logprobs[:, groups_ZxG],
            behavior_logprobs[:, groups_ZxG],
            advantages_NxZxG,
            mask_ZxGxR,
        )
        return -jnp.sum(group_probs_NxZ * losses_NxZ) / len(losses_NxZ)

    expected = jax.jit(jax.grad(literal))(params)
    assert (
        relative_error(
            problems.surrogate_gradient(problem, params, behavior_params, objective), expected
        )
        < 1e-13
    )


def test_prefix_pass_equals_full_sequences():
    problem, task, policy, _ = build("longer")
    params = problems.initial_params(policy)
    np.testing.assert_allclose(
        problems.logprobs(problem, params),
        problems.full_sequence_logprobs(policy, task, params),
        rtol=1e-13,
    )
    probs_NxY = jnp.exp(jnp.sum(problems.logprobs(problem, params), axis=-1))
    # Each response is there exactly once.
    np.testing.assert_allclose(jnp.sum(probs_NxY, axis=-1), 1.0, rtol=1e-13)


def test_bias_is_the_difference_of_gradients_and_zero_without_lag():
    problem, _, policy, objective = build("transformer")
    params, behavior_params = fresh_and_stale(policy, 0.05)
    stale, fresh = (
        problems.surrogate_gradient(problem, params, phi, objective)
        for phi in (behavior_params, params)
    )
    bias = problems.surrogate_bias(problem, params, behavior_params, objective)
    assert relative_error(bias, jax.tree.map(np.subtract, stale, fresh)) < 1e-12
    none = flatten(problems.surrogate_bias(problem, params, params, objective))
    # Not bitwise: the compiler may round the two passes through the network differently.
    assert jnp.linalg.norm(none) < 1e-14 * jnp.linalg.norm(flatten(fresh))


def test_gradient_is_zero_where_all_rewards_are_equal():
    problem, _, policy, objective = build("variable_length")
    params, behavior_params = fresh_and_stale(policy, 0.1)
    level_NxY = np.asarray(problem.level_NxY).copy()
    level_NxY[0] = 1
    gradient = problems.surrogate_gradient(
        dataclasses.replace(problem, level_NxY=level_NxY), params, behavior_params, objective
    )
    table = gradient["table"]
    prompt_token = np.asarray(problem.inputs_OxT)[0, 0]
    assert np.all(np.asarray(table[prompt_token]) == 0.0)  # the first response token after prompt 0
    assert np.any(np.asarray(table) != 0.0)


def test_clip_cuts_to_exactly_zero():
    """Nothing is left when rewarded tokens pass the upper bound and the others the lower one."""
    problem, _, policy = problems.make(
        "tabular",
        vocab_size=2,
        max_response_length=1,
        num_prompts=2,
        variable_length=False,
        difficulty=0.5,
    )
    params = problems.initial_params(policy)
    behavior = problems.logprobs(problem, params)[..., 0]
    table = params["table"]
    for n in range(2):
        best = int(np.argmax(problem.level_NxY[n]))
        table = table.at[n, best].add(1.0 + 2 * abs(behavior[n, 1] - behavior[n, 0]))
    moved = {"table": table}
    gradient = problems.surrogate_gradient(problem, moved, params, OBJECTIVE)
    assert np.all(np.asarray(gradient["table"]) == 0.0)
    # Unlearning is not clipped.
    backward = problems.surrogate_gradient(problem, params, moved, OBJECTIVE)
    assert np.any(np.asarray(backward["table"]) != 0.0)


def test_level_that_no_response_attains_changes_nothing():
    problem, _, policy, objective = build("variable_length")
    params, behavior_params = fresh_and_stale(policy, 0.1)
    wider = dataclasses.replace(problem, levels_M=np.array([0.0, 1.0, 5.0]))

    def phi_derivative(problem):
        def gradient(phi):
            return problems.surrogate_gradient(problem, params, phi, objective)

        return jax.jvp(gradient, (behavior_params,), (params,))

    gradient, derivative = phi_derivative(problem)
    wider_gradient, wider_derivative = phi_derivative(wider)
    assert relative_error(wider_gradient, gradient) < 1e-14
    assert relative_error(wider_derivative, derivative) < 1e-14


def test_problem_goes_through_jit_and_vmap_with_other_rewards():
    problem, _, policy, objective = build("variable_length")
    params, behavior_params = fresh_and_stale(policy, 0.1)
    levels = jnp.stack([problem.level_NxY, 1 - problem.level_NxY])

    @jax.jit
    def gradients(problem, levels):
        def of(level_NxY):
            changed = dataclasses.replace(problem, level_NxY=level_NxY)
            return problems.surrogate_gradient(changed, params, behavior_params, objective)

        return jax.vmap(of)(levels)

    first, second = gradients(problem, levels)["table"]
    assert (
        relative_error(
            first, problems.surrogate_gradient(problem, params, behavior_params, objective)
        )
        < 1e-13
    )
    assert relative_error(second, first) > 0.1


@pytest.mark.parametrize("normalize_std", [True, False])
def test_surrogate_on_the_diagonal_is_zero_and_its_phi_gradient_is_minus_h(normalize_std):
    problem, _, policy, objective = build("transformer")
    objective = dataclasses.replace(objective, normalize_std=normalize_std)
    params = problems.initial_params(policy)
    assert abs(problems.surrogate(problem, params, params, objective)) < 1e-15
    phi_gradient = problems.behavior_gradient_of_surrogate(problem, params, params, objective)
    minus_h = jax.tree.map(
        np.negative, problems.surrogate_gradient(problem, params, params, objective)
    )
    assert relative_error(phi_gradient, minus_h) < 1e-12


def diagonal_jacobian(problem, policy, objective):
    """Returns d/dtheta of H(theta, theta), [D, D]; it is symmetric where H is a gradient field."""
    params = problems.initial_params(policy)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def diagonal(flat):
        return flatten(
            problems.surrogate_gradient(problem, unravel(flat), unravel(flat), objective)
        )

    return np.asarray(jax.jit(jax.jacfwd(diagonal))(flat))


def test_diagonal_is_a_gradient_field_for_fixed_length_only():
    problem, _, policy = problems.make("tabular", variable_length=False, max_response_length=2)
    jacobian = diagonal_jacobian(problem, policy, OBJECTIVE)
    assert np.linalg.norm(jacobian - jacobian.T) < 1e-14 * np.linalg.norm(jacobian)
    problem, _, policy = problems.make("tabular", variable_length=True, max_response_length=3)
    jacobian = diagonal_jacobian(problem, policy, OBJECTIVE)
    assert np.linalg.norm(jacobian - jacobian.T) > 0.05 * np.linalg.norm(jacobian)


def test_diagonal_is_parallel_to_the_performative_derivative_for_fixed_length():
    problem, _, policy = problems.make("tabular", variable_length=False)
    params = problems.initial_params(policy)
    gradient = problems.surrogate_gradient(problem, params, params, OBJECTIVE)
    performative = jax.jit(jax.grad(exact.performative_objective, 1), static_argnums=3)(
        problem, params, params, OBJECTIVE
    )
    length = problem.tokens_YxR.shape[1]
    assert (
        relative_error(jax.tree.map(lambda g: length * np.asarray(g), gradient), performative)
        < 1e-12
    )


def test_without_std_and_with_constant_length_h_is_the_reward_gradient():
    """H(theta, theta) equals (1 - 1/G) grad J / R for fixed length.

    For A = r - mean, and so E[A | y] = (1 - 1/G)(r - J).
    """
    problem, _, policy = problems.make(
        "tabular", variable_length=False, reward_levels=(0.0, 0.3, 1.0)
    )
    objective = SurrogateConfig(normalize_std=False, length_normalization="constant")
    params = problems.initial_params(policy)
    reward_gradient = jax.jit(jax.grad(expected_reward, 1))(problem, params)
    scale = (1 - 1 / problem.group_size) / problem.tokens_YxR.shape[1]
    expected = jax.tree.map(lambda g: scale * g, reward_gradient)
    assert (
        relative_error(problems.surrogate_gradient(problem, params, params, objective), expected)
        < 1e-12
    )


@pytest.mark.parametrize("reward_levels", [(0.0, 1.0), (0.0, 0.3, 1.0)])
def test_sequence_is_leaves_the_group_statistics(reward_levels):
    problem, _, policy = problems.make("tabular", reward_levels=reward_levels, difficulty=0.4)
    params, behavior_params = fresh_and_stale(policy, 0.3)

    def residual(objective):
        weighted = exact.corrected_gradient(
            problem, params, behavior_params, objective, exact.sequence_is_coefficients
        )
        return flatten(weighted) - flatten(
            problems.surrogate_gradient(problem, params, params, objective)
        )

    predicted = flatten(exact.group_statistics_bias(problem, params, behavior_params, OBJECTIVE))
    assert jnp.linalg.norm(predicted) > 1e-4
    assert relative_error(residual(OBJECTIVE), predicted) < 1e-12
    unbiased = dataclasses.replace(OBJECTIVE, normalize_std=False, length_normalization="constant")
    assert jnp.linalg.norm(residual(unbiased)) < 1e-15
