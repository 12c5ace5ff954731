"""Computes the advantage of each response relative to its group."""

import chex
import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import clamped_exp
from staleness_grpo.types import Array


def group_advantages(
    rewards_NxG: Array,
    *,
    normalize_std: bool,
    std_epsilon: float,
    baseline_weights_NxG: Array | None = None,
) -> jax.Array:
    """Returns the advantage of each response relative to its group. Advantages have no gradient.

    With `normalize_std`: A_i = (r_i - mean(r)) / (std(r) + std_epsilon)
      (DeepSeekMath, arXiv 2402.03300, section 4.1.2).
    Without `normalize_std`: A_i = r_i - mean(r)
      (Dr. GRPO, arXiv 2503.20783).

    With `baseline_weights_NxG` v, the baseline sum(v r) / sum(v) replaces mean(r), and std stays.
    A group whose weights are all 0 keeps mean(r). `optimal_baseline_weights` makes such weights.

    std is the population standard deviation, with divisor G. If all rewards of a group are equal,
    its advantages are exactly 0. If one of them is not finite, none of its advantages is finite.

    Args:
      rewards_NxG: float rewards. The last axis is the group. There may be more leading axes.
      normalize_std: whether to divide by the group's standard deviation.
      std_epsilon: a number > 0, added to the standard deviation so that the quotient is finite.
      baseline_weights_NxG: weights >= 0 of the rewards in the baseline; None for equal weights.

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
    above_baseline = centered
    if baseline_weights_NxG is not None:
        total = jnp.sum(baseline_weights_NxG, axis=-1, keepdims=True)
        weighted = jnp.sum(baseline_weights_NxG * centered, axis=-1, keepdims=True)
        above_baseline = centered - weighted / jnp.where(total == 0, 1.0, total)
    if normalize_std:
        above_baseline = above_baseline / (
            jnp.sqrt(jnp.mean(centered**2, axis=-1, keepdims=True)) + std_epsilon
        )
    return jax.lax.stop_gradient(above_baseline)


def optimal_baseline_weights(
    policy_logprobs: Array, behavior_logprobs: Array, mask: Array, score_norms: Array
) -> jax.Array:
    """Returns the weight W^2 n of each response's reward in VCPO's baseline, without a gradient.

    W = prod_t rho is the sequence weight, clamped by `clamped_exp`. n is the squared norm of the
    response's score, grad_theta log pi_theta(y). The response adds a multiple of W (r - b)
    grad_theta log pi_theta(y) to the gradient. So the baseline b with these weights minimizes the
    sum of the squared norms of a group's terms (VCPO, arXiv 2602.17616). The authors' code adds
    1e-8 to the sum of the weights, and here nothing is added.

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi of the response tokens.
      mask: [..., R] bool, True on the response's tokens. Masked places may hold NaN.
      score_norms: [...] float, n of each response.

    Returns:
      The weights, in the shape of `score_norms`.
    """
    log_ratio = jnp.where(mask, policy_logprobs, 0.0) - jnp.where(mask, behavior_logprobs, 0.0)
    weight = clamped_exp(jnp.sum(log_ratio, axis=-1))
    return jax.lax.stop_gradient(weight**2 * score_norms)
