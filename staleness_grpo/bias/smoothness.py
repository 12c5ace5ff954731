"""Measures the Lipschitz constant of H(theta, phi) in phi, which the bias theorem uses.

arXiv 2607.01083 bounds the bias of a step by a Lipschitz constant of H in phi, times the
displacement of the parameters over the lag. To first order the Lipschitz constant is
sigma_max(d_phi H) at phi = theta, which is measured here. The measured constant is local. H jumps
where a token becomes clipped, and no Lipschitz constant holds there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.bias.exact import surrogate_bias, surrogate_gradient
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import PyTree


def largest_singular_value(
    function: Callable, at: jax.Array, num_iterations: int, key: jax.Array
) -> jax.Array:
    """Returns sigma_max of a function's Jacobian J at a point, by power iteration on J^T J.

    The value is a lower bound that converges to sigma_max from below. Its relative error falls as
    (sigma_2 / sigma_1)^(4 * num_iterations).

    Args:
      function: a function from vectors [D] to vectors of any length.
      at: [D], the point.
      num_iterations: number of power iterations.
      key: the random key of the start vector.
    """
    _, jacobian = jax.linearize(function, at)
    transposed = jax.linear_transpose(jacobian, at)

    def iterate(_: int, direction: jax.Array) -> jax.Array:
        image = transposed(jacobian(direction))[0]
        return image / jnp.maximum(jnp.linalg.norm(image), jnp.finfo(image.dtype).tiny)

    start = jax.random.normal(key, at.shape, at.dtype)
    direction = jax.lax.fori_loop(0, num_iterations, iterate, start / jnp.linalg.norm(start))
    return jnp.linalg.norm(jacobian(direction))


def behavior_smoothness(
    problem: Problem,
    params: PyTree,
    objective: SurrogateConfig,
    num_iterations: int,
    key: jax.Array,
) -> jax.Array:
    """Returns sigma_max(d_phi H(theta, phi)) at phi = theta, a scalar."""
    theta_D, unravel = ravel_pytree(params)

    def gradient(behavior_D: jax.Array) -> jax.Array:
        tree = surrogate_gradient(problem, params, unravel(behavior_D), objective)
        return ravel_pytree(tree)[0]

    return largest_singular_value(gradient, theta_D, num_iterations, key)


def lipschitz_tightness(
    problem: Problem,
    params: PyTree,
    behavior_params: PyTree,
    objective: SurrogateConfig,
    smoothness: jax.Array,
) -> jax.Array:
    """Returns ||H(theta, phi) - H(theta, theta)|| / (smoothness * ||theta - phi||).

    The Lipschitz bound holds where the result is <= 1.
    """
    bias = ravel_pytree(surrogate_bias(problem, params, behavior_params, objective))[0]
    displacement = ravel_pytree(params)[0] - ravel_pytree(behavior_params)[0]
    return jnp.linalg.norm(bias) / (smoothness * jnp.linalg.norm(displacement))
