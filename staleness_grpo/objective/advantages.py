"""Computes group-relative advantages."""

import chex
import jax
import jax.numpy as jnp

from staleness_grpo.types import Array


def group_advantages(rewards_NxG: Array, *, normalize_std: bool, std_epsilon: float) -> jax.Array:
    """Returns the advantage of each response over its own group, constant under differentiation.

    A_i = (r_i - mean(r)) / (std(r) + std_epsilon), or r_i - mean(r) without `normalize_std`
    (DeepSeekMath, arXiv 2402.03300, section 4.1.2; without std: Dr. GRPO, arXiv 2503.20783).
    std is the population one (divisor G). A group of equal rewards has advantages of exactly 0.

    Args:
      rewards_NxG: float rewards with the group in the last axis; any leading axes.
      normalize_std: divide by the group's standard deviation.
      std_epsilon: the delta > 0 that keeps groups of equal rewards finite.

    Returns:
      Advantages, same shape.

    Raises:
      AssertionError: if the rewards are not floats.
    """
    chex.assert_type(rewards_NxG, float)
    centered = rewards_NxG - jnp.mean(rewards_NxG, axis=-1, keepdims=True)
    # The mean of equal floats may round. A group of equal rewards would then get a tiny advantage,
    # which the division by std_epsilon blows up.
    spread = jnp.max(rewards_NxG, axis=-1, keepdims=True) - jnp.min(
        rewards_NxG, axis=-1, keepdims=True
    )
    centered = jnp.where(spread > 0, centered, 0.0)
    if normalize_std:
        centered = centered / (
            jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True)) + std_epsilon
        )
    return jax.lax.stop_gradient(centered)
