"""Computes the advantage of each response relative to its group."""

import chex
import jax
import jax.numpy as jnp

from staleness_grpo.types import Array


def group_advantages(rewards_NxG: Array, *, normalize_std: bool, std_epsilon: float) -> jax.Array:
    """Returns the advantage of each response relative to its group. Advantages have no gradient.

    With `normalize_std`: A_i = (r_i - mean(r)) / (std(r) + std_epsilon)
      (DeepSeekMath, arXiv 2402.03300, section 4.1.2).
    Without `normalize_std`: A_i = r_i - mean(r)
      (Dr. GRPO, arXiv 2503.20783).

    std is the population standard deviation, with divisor G. If all rewards of a group are equal,
    its advantages are exactly 0. If one of them is not finite, none of its advantages is finite.

    Args:
      rewards_NxG: float rewards. The last axis is the group. There may be more leading axes.
      normalize_std: whether to divide by the group's standard deviation.
      std_epsilon: a number > 0, added to the standard deviation so that the quotient is finite.

    Returns:
      The advantages, in the shape of the rewards.

    Raises:
      AssertionError: the rewards are not floats.
    """
    chex.assert_type(rewards_NxG, float)
    centered = rewards_NxG - jnp.mean(rewards_NxG, axis=-1, keepdims=True)
    # Rounding may make the mean of equal rewards differ from the rewards. The tiny difference,
    # divided by std_epsilon, would be a large advantage.
    spread = jnp.max(rewards_NxG, axis=-1, keepdims=True) - jnp.min(
        rewards_NxG, axis=-1, keepdims=True
    )
    # NaN is not equal to 0, so a group with a reward that is not finite keeps NaN.
    centered = jnp.where(spread == 0, 0.0, centered)
    if normalize_std:
        centered = centered / (
            jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True)) + std_epsilon
        )
    return jax.lax.stop_gradient(centered)
