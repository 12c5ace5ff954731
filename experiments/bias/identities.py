"""Measures quantities at fixed policies: arrays with one value for each draw."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.bias.cells import SAMPLING, Draws, draw_keys, make_policy
from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import Problem, expected_reward, response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig, grpo_surrogate
from staleness_grpo.types import Array, PyTree

BLOCK = 100  # sampled batches averaged before they leave the device
BLOCKS_PER_CHUNK = 10
AVERAGED_BLOCKS = (1, 3, 9, 27)
BISECTIONS = 30  # of a bracket of 10 %: to a relative width of 1e-10
PROBES = 16


def flat(tree: PyTree) -> jax.Array:
    """Returns all leaves in one vector."""
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
    """Returns H by brute force: autodiff of the training loop's surrogate on all Y^G groups."""
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
    """Returns the relative difference of the exact H and the sum over all groups.

    The problems have two and three reward levels, and are small enough for that sum (two prompts,
    R = 2, G = 4). The parameters are stale, with clipped tokens.

    Returns:
      [2 * draws], two levels before three.
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
    """Returns (theta, phi): one SGD step of this learning rate, trained fresh, leads to theta."""
    return ascend(
        params, exact.surrogate_gradient(problem, params, params, objective), s_eta
    ), params


def diagonal_identities(draws: Draws) -> dict[str, np.ndarray]:
    """Returns |L(theta, theta)| and the relative difference of grad_phi L and -H at phi = theta."""

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
    """Measures whether H(theta, theta) is a gradient: its angle to grad J, and its asymmetry.

    The angle is in degrees. The asymmetry of the Jacobian J of H is ||J - J^T|| / ||J + J^T||,
    exactly 0 for a gradient field. The Frobenius norms are estimated from u^T J v for all pairs of
    PROBES normal vectors: E (u^T A v)^2 = ||A||^2.
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
        probes = jax.random.normal(jax.random.key(0), (PROBES, theta.size), theta.dtype)
        images = jax.vmap(lambda v: jax.jvp(diagonal, (theta,), (v,))[1])(probes)
        projected = probes @ images.T
        projected -= jnp.diag(jnp.diag(projected))
        asymmetry = jnp.linalg.norm(projected - projected.T) / jnp.linalg.norm(
            projected + projected.T
        )
        return {"angle": jnp.degrees(jnp.arccos(jnp.minimum(cosine, 1.0))), "asymmetry": asymmetry}

    return draws.over_draws(measure)


def sequence_is_residual(draws: Draws, s_eta: float) -> dict[str, np.ndarray]:
    """Measures how much of the bias exact sequence-level importance weights leave.

    All values are relative to ||H||.

    Returns:
      'bias' of the clipped surrogate; 'residual' with the config's objective; 'unexplained', which
      is the residual less the part of the group statistics; 'constant', the residual without std
      and with constant length normalization.
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
    """Measures the relative error of the bias in float32.

    Returns:
      'difference' of two gradients, and 'pullback' of one difference of cotangents.
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

    theta moves along H(phi, phi) away from phi. The jump is taken over a narrow bracket of theta
    around the first clipped token. A Lipschitz constant would bound it by a multiple of the width.

    Returns:
      's_eta', the upper end of the bracket; 'relative_jump', ||jump|| / ||H||; 'relative_width' of
      the bracket.
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

        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, jnp.array([outside / 1.1, outside]))
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


def sampled_deviation(draws: Draws, s_eta: float) -> dict[str, dict[str, float]]:
    """Compares the mean of sampled gradients with the exact H, in draw 0.

    Returns:
      for 'fresh' phi, and for phi one 'stale' step away: 'max_z', the largest deviation of a
      component in its standard errors; 'slope' of the root mean square error against the number of
      averaged batches, in logarithms; 'num_batches' and 'num_components'.
    """
    settings = draws.config.sampled
    num_chunks = settings.num_batches // (BLOCK * BLOCKS_PER_CHUNK)
    problem = dataclasses.replace(draws.problem, level_NxY=draws.levels[0])
    params = jax.tree.map(lambda x: x[0], draws.params)
    coefficients = exact.clip_coefficients(draws.objective)

    @jax.jit
    def deviations(step: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the deviation [blocks, D] of the mean of each block of batches."""
        theta, phi = stale_step(problem, params, draws.objective, step)
        policy_logprobs, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), theta)
        behavior_logprobs = response_logprobs(problem, phi)

        def sample(key: jax.Array) -> jax.Array:
            return sampled_cotangent(
                problem,
                policy_logprobs,
                behavior_logprobs,
                draws.objective,
                settings.batch_prompts,
                key,
            )

        def chunk(index: jax.Array) -> jax.Array:
            keys = jax.random.split(jax.random.fold_in(key, index), BLOCKS_PER_CHUNK * BLOCK)
            cotangents = jax.vmap(sample)(keys)
            return jnp.mean(
                cotangents.reshape(BLOCKS_PER_CHUNK, BLOCK, *cotangents.shape[1:]), axis=1
            )

        blocks = jax.lax.map(chunk, jnp.arange(num_chunks)).reshape(-1, *policy_logprobs.shape)
        expected = exact.logprob_cotangent(
            problem, policy_logprobs, behavior_logprobs, draws.objective, coefficients
        )
        return jax.vmap(lambda cotangent: flat(pull_back(cotangent - expected)[0]))(blocks)

    key = draw_keys(draws.config, SAMPLING)[0]
    return {
        name: deviation_statistics(np.asarray(deviations(step, key)))
        for name, step in (("fresh", 0.0), ("stale", s_eta))
    }


def deviation_statistics(deviations: np.ndarray) -> dict[str, float]:
    """Computes the statistics of `sampled_deviation` from the deviations [blocks, D]."""
    standard_error = deviations.std(axis=0, ddof=1) / np.sqrt(len(deviations))
    moving = standard_error > 1e-15  # the others are rounding around an exact 0
    rms = []
    for n in AVERAGED_BLOCKS:
        means = (
            deviations[: len(deviations) // n * n].reshape(-1, n, deviations.shape[1]).mean(axis=1)
        )
        rms.append(np.sqrt(np.mean(np.sum(means**2, axis=1))))
    return {
        "max_z": float(np.max(np.abs(deviations.mean(axis=0)[moving]) / standard_error[moving])),
        "slope": float(np.polyfit(np.log(AVERAGED_BLOCKS), np.log(rms), 1)[0]),
        "num_batches": len(deviations) * BLOCK,
        "num_components": int(moving.sum()),
    }
