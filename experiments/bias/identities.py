"""Measures quantities at fixed policies, without training.

Most functions return arrays with one value for each draw.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.bias.cells import Draws, make_policy
from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import Problem, expected_reward, response_logprobs
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig, grpo_surrogate
from staleness_grpo.types import Array, PyTree

BLOCK_SIZE = 100  # sampled batches that the device averages before it returns them
BLOCKS_PER_CHUNK = 10  # blocks that are computed at the same time
AVERAGED_BLOCKS = (1, 3, 9, 27)  # numbers of blocks at which the error of the mean is measured
NUM_BISECTIONS = 30  # narrows a bracket of relative width 0.1 to 1e-10
NUM_PROBES = 16  # random vectors that estimate a Frobenius norm


def flat(tree: PyTree) -> jax.Array:
    """Returns all leaves of a tree as one vector."""
    return ravel_pytree(tree)[0]


def relative(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns ||a - b|| / ||b||."""
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)


def ascend(params: PyTree, direction: PyTree, step: Array | float) -> PyTree:
    """Returns params + step * direction."""
    return jax.tree.map(lambda p, d: p + step * d, params, direction)


def all_groups_gradient(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> PyTree:
    """Returns H by brute force, as the gradient of the training loop's surrogate.

    The surrogate is summed over all Y^G groups, weighted by their probabilities, and differentiated
    by autodiff.
    """
    num_responses = problem.mask_YxR.shape[0]
    groups_ZxG = np.array(list(itertools.product(range(num_responses), repeat=problem.group_size)))
    behavior_logprobs = response_logprobs(problem, behavior_params)
    probs_NxZ = jnp.exp(jnp.sum(behavior_logprobs[:, groups_ZxG], axis=(-1, -2)))
    advantages_NxZxG = group_advantages(
        jnp.asarray(problem.levels_M)[problem.level_NxY][:, groups_ZxG],
        normalize_std=objective.normalize_std,
        std_epsilon=objective.std_epsilon,
    )
    mask_ZxGxR = jnp.asarray(problem.mask_YxR)[groups_ZxG]

    def group_loss(*arrays: Array) -> jax.Array:
        policy_logprobs, behavior_logprobs, advantages, mask = arrays
        return grpo_surrogate(policy_logprobs, behavior_logprobs, advantages, mask, objective)[0]

    def population_surrogate(params: PyTree) -> jax.Array:
        policy_logprobs = response_logprobs(problem, params)
        losses_NxZ = jax.vmap(jax.vmap(group_loss), in_axes=(0, 0, 0, None))(
            policy_logprobs[:, groups_ZxG],
            behavior_logprobs[:, groups_ZxG],
            advantages_NxZxG,
            mask_ZxGxR,
        )
        return -jnp.sum(probs_NxZ * losses_NxZ) / len(losses_NxZ)

    return jax.grad(population_surrogate)(params)


def brute_force_error(draws: Draws) -> np.ndarray:
    """Returns the relative difference between the exact H and the sum over all groups.

    The problems are small, because the sum has Y^G terms: two prompts, R = 2, G = 4. They have two
    or three reward levels. The rollouts are so stale that tokens are clipped.

    Returns:
      [2 * draws]; the problems with two levels come before those with three.
    """
    objective = draws.objective

    def error(problem: Problem, params: PyTree) -> jax.Array:
        stale, _ = stale_step(problem, params, objective, 1.0)
        brute = all_groups_gradient(problem, stale, params, objective)
        return relative(
            flat(exact.surrogate_gradient(problem, stale, params, objective)), flat(brute)
        )

    size = {"num_prompts": 2, "group_size": 4, "max_response_length": 2, "difficulty": 0.5}
    levels = ((0.0, 1.0), (0.0, 0.3, 1.0))
    return np.concatenate(
        [draws.with_task(reward_levels=values, **size).over_draws(error) for values in levels]
    )


def stale_step(
    problem: Problem, params: PyTree, objective: SurrogateConfig, s_eta: Array | float
) -> tuple[PyTree, PyTree]:
    """Returns (theta, phi), where phi is `params` and theta is one SGD step away from phi.

    The step has fresh rollouts, and `s_eta` is its learning rate.
    """
    return ascend(
        params, exact.surrogate_gradient(problem, params, params, objective), s_eta
    ), params


def diagonal_identities(draws: Draws) -> dict[str, np.ndarray]:
    """Returns |L| and the relative difference between grad_phi L and -H, both at phi = theta."""

    def identities(problem: Problem, params: PyTree) -> dict[str, jax.Array]:
        value, phi_gradient = jax.value_and_grad(exact.surrogate, 2)(
            problem, params, params, draws.objective
        )
        gradient = exact.surrogate_gradient(problem, params, params, draws.objective)
        return {
            "diagonal": jnp.abs(value),
            "phi_gradient": relative(flat(phi_gradient), -flat(gradient)),
        }

    return draws.over_draws(identities)


def gradient_field(draws: Draws) -> dict[str, np.ndarray]:
    """Measures whether H(theta, theta) is a gradient field, and its angle to grad J.

    Returns:
      Two values for each draw:

      - 'angle': the angle between H(theta, theta) and the gradient of the expected reward J, in
        degrees.
      - 'asymmetry': ||A - A^T|| / ||A + A^T|| for the Jacobian A of H. It is exactly 0 for a
        gradient field. The Frobenius norms are estimated from u^T A v for all pairs of NUM_PROBES
        normal vectors, since E (u^T A v)^2 = ||A||^2.
    """

    def measure(problem: Problem, params: PyTree) -> dict[str, jax.Array]:
        theta, unravel = ravel_pytree(params)

        def diagonal(theta: jax.Array) -> jax.Array:
            return flat(
                exact.surrogate_gradient(problem, unravel(theta), unravel(theta), draws.objective)
            )

        gradient = diagonal(theta)
        reward_gradient = flat(jax.grad(expected_reward, 1)(problem, params))
        cosine = (
            gradient
            @ reward_gradient
            / (jnp.linalg.norm(gradient) * jnp.linalg.norm(reward_gradient))
        )
        probes = jax.random.normal(jax.random.key(0), (NUM_PROBES, theta.size), theta.dtype)
        images = jax.vmap(lambda v: jax.jvp(diagonal, (theta,), (v,))[1])(probes)
        projected = probes @ images.T
        projected -= jnp.diag(jnp.diag(projected))
        asymmetry = jnp.linalg.norm(projected - projected.T) / jnp.linalg.norm(
            projected + projected.T
        )
        return {"angle": jnp.degrees(jnp.arccos(jnp.minimum(cosine, 1.0))), "asymmetry": asymmetry}

    return draws.over_draws(measure)


def sequence_is_residual(draws: Draws, s_eta: float) -> dict[str, np.ndarray]:
    """Measures the bias that remains with exact sequence-level importance weights.

    Returns:
      Four norms, each divided by ||H||:

      - 'bias': the bias of the clipped surrogate, without importance weights.
      - 'residual': the bias that remains with the weights, for the config's objective.
      - 'unexplained': the residual minus the bias of the group statistics.
      - 'constant': the residual without std and with constant length normalization.
    """
    constant = dataclasses.replace(
        draws.objective, normalize_std=False, length_normalization="constant"
    )

    def measure(problem: Problem, params: PyTree) -> dict[str, jax.Array]:
        theta, phi = stale_step(problem, params, draws.objective, s_eta)

        def residual(objective: SurrogateConfig) -> tuple[jax.Array, jax.Array]:
            weighted = exact.corrected_gradient(
                problem, theta, phi, objective, exact.sequence_is_coefficients
            )
            fresh = flat(exact.surrogate_gradient(problem, theta, theta, objective))
            return flat(weighted) - fresh, jnp.linalg.norm(fresh)

        left, norm = residual(draws.objective)
        predicted = flat(exact.group_statistics_bias(problem, theta, phi, draws.objective))
        left_constant, norm_constant = residual(constant)
        bias = flat(exact.surrogate_bias(problem, theta, phi, draws.objective))
        return {
            "bias": jnp.linalg.norm(bias) / norm,
            "residual": jnp.linalg.norm(left) / norm,
            "unexplained": jnp.linalg.norm(left - predicted) / norm,
            "constant": jnp.linalg.norm(left_constant) / norm_constant,
        }

    return draws.over_draws(measure)


def float32_error(draws: Draws, s_eta: float) -> dict[str, np.ndarray]:
    """Measures the relative error of a bias that is computed in float32.

    Returns:
      The error of two ways to compute the bias:

      - 'difference': the difference of two gradients.
      - 'pullback': the gradient that belongs to the difference of two cotangents.
    """
    apply32 = make_policy(draws.config, dtype="float32", param_dtype="float32").apply

    def measure(problem: Problem, params: PyTree) -> dict[str, jax.Array]:
        theta, phi = stale_step(problem, params, draws.objective, s_eta)
        expected = flat(exact.surrogate_bias(problem, theta, phi, draws.objective))
        theta32, phi32 = (jax.tree.map(lambda x: x.astype(jnp.float32), p) for p in (theta, phi))
        problem32 = dataclasses.replace(problem, apply=apply32)
        stale, fresh = (
            flat(exact.surrogate_gradient(problem32, theta32, p, draws.objective))
            for p in (phi32, theta32)
        )
        pulled = flat(exact.surrogate_bias(problem32, theta32, phi32, draws.objective))
        return {
            "difference": relative(stale - fresh, expected),
            "pullback": relative(pulled, expected),
        }

    return draws.over_draws(measure)


def clip_jump(draws: Draws) -> dict[str, np.ndarray]:
    """Measures the jump of H(theta, phi) where the first token is clipped.

    theta moves away from phi in the direction of H(phi, phi). Bisection finds a narrow bracket of
    steps: no token is clipped at its lower end, and one is clipped at its upper end. The jump is
    the change of H over the bracket. If H were Lipschitz continuous, the jump would be at most a
    constant times the width of the bracket.

    Returns:
      's_eta', the upper end of the bracket; 'relative_jump', which is ||jump|| / ||H||; and
      'relative_width', which is the width of the bracket over its upper end.
    """

    def measure(problem: Problem, params: PyTree) -> dict[str, jax.Array]:
        direction = exact.surrogate_gradient(problem, params, params, draws.objective)
        phi_logprobs = response_logprobs(problem, params)

        def clipped(step: jax.Array) -> jax.Array:
            logprobs = response_logprobs(problem, ascend(params, direction, step))
            return exact.clip_fraction(problem, logprobs, phi_logprobs, draws.objective) > 0

        outside = jax.lax.while_loop(
            lambda step: ~clipped(step), lambda step: 1.1 * step, jnp.float64(1e-3)
        )

        def halve(_: int, bracket: jax.Array) -> jax.Array:
            middle = (bracket[0] + bracket[1]) / 2
            return jnp.where(
                clipped(middle), jnp.array([bracket[0], middle]), jnp.array([middle, bracket[1]])
            )

        low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, jnp.array([outside / 1.1, outside]))
        before, after = (
            flat(
                exact.surrogate_gradient(
                    problem, ascend(params, direction, step), params, draws.objective
                )
            )
            for step in (low, high)
        )
        return {
            "s_eta": high,
            "relative_jump": relative(after, before),
            "relative_width": (high - low) / high,
        }

    return draws.over_draws(measure)
