"""Tests the theorem's constant against a full singular value decomposition, and its bound."""

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.bias import exact, smoothness
from tests.bias import problems
from tests.bias.problems import OBJECTIVE, flatten


def test_power_iteration_finds_sigma_max_and_the_bound_is_attained_along_its_direction():
    problem, _, policy = problems.make("tabular", variable_length=False)
    params = problems.initial_params(policy)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def gradient(flat_behavior):
        return flatten(exact.surrogate_gradient(problem, params, unravel(flat_behavior), OBJECTIVE))

    _, singular_values, directions = np.linalg.svd(np.asarray(jax.jit(jax.jacfwd(gradient))(flat)))
    smoothness_of = jax.jit(
        smoothness.behavior_smoothness, static_argnames=("objective", "num_iterations")
    )
    sigma = smoothness_of(problem, params, OBJECTIVE, 60, jax.random.key(1))
    np.testing.assert_allclose(sigma, singular_values[0], rtol=1e-6)

    worst = directions[0]
    random = np.random.default_rng(0).normal(size=worst.size)
    tightness = []
    for direction in (worst, random):
        step = (
            1e-5 * direction / np.linalg.norm(direction)
        )  # small: the bound is one of first order
        behavior_params = unravel(flatten(params) + jnp.asarray(step))
        tightness.append(
            smoothness.lipschitz_tightness(problem, params, behavior_params, OBJECTIVE, sigma)
        )
    np.testing.assert_allclose(tightness[0], 1.0, rtol=1e-3)
    assert 0 < tightness[1] < 0.9
