"""The surrogate L(theta, phi) with the behavior policy phi explicit, for any correction, and its diagnostics."""

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from staleness_grpo.objective.corrections.clipped import grpo_clip
from staleness_grpo.objective.tokens import TokenBatch
from staleness_grpo.types import Array

TokenObjective = Callable[[TokenBatch], Array]  # a correction with its parameters fixed: [..., R], to be maximised

LENGTH_NORMALIZATIONS = ("response", "constant", "tokens")
RATIO_QUANTILES = (0.01, 0.5, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """The surrogate's choices; hashable, so that it can be static under jit."""

    clip_low: float = 0.2  # ratio clipped below 1 - clip_low
    clip_high: float = 0.2  # and above 1 + clip_high
    length_normalization: str = "response"  # one of LENGTH_NORMALIZATIONS
    normalize_std: bool = True  # divide advantages by the group's standard deviation
    std_epsilon: float = 1e-4  # delta > 0 in that division

    def __post_init__(self):
        if self.clip_low <= 0 or self.clip_high <= 0:
            raise ValueError(f"clip_low and clip_high must be > 0, got {self.clip_low}, {self.clip_high}")
        if self.length_normalization not in LENGTH_NORMALIZATIONS:
            raise ValueError(
                f"length_normalization must be one of {LENGTH_NORMALIZATIONS}, got {self.length_normalization!r}"
            )
        if self.normalize_std and self.std_epsilon <= 0:
            raise ValueError(f"std_epsilon must be > 0, got {self.std_epsilon}")


def token_weights(mask_BxR: Array, length_normalization: str) -> jax.Array:
    """Weight of each token in the batch mean; 0 where masked.

    'response': 1/(B |y|), each response counts the same (GRPO). 'constant': 1/(B R), R the padded
    length (Dr. GRPO, arXiv 2503.20783). 'tokens': 1/sum_b |y_b|, each token counts the same
    (DAPO, arXiv 2503.14476). An empty response weighs nothing; it still counts in B.
    """
    mask_BxR = jnp.asarray(mask_BxR)
    length_B1 = jnp.sum(mask_BxR, axis=-1, keepdims=True)
    num_responses = length_B1.size
    if length_normalization == "response":
        weight = 1.0 / (num_responses * jnp.maximum(length_B1, 1))
    elif length_normalization == "constant":
        weight = 1.0 / mask_BxR.size
    elif length_normalization == "tokens":
        weight = 1.0 / jnp.maximum(jnp.sum(length_B1), 1)
    else:
        raise ValueError(f"length_normalization must be one of {LENGTH_NORMALIZATIONS}, got {length_normalization!r}")
    return jnp.where(mask_BxR, weight, 0.0)


def grpo_surrogate(
    policy_logprobs: Array,
    behavior_logprobs: Array,
    advantages: Array,
    mask: Array,
    config: SurrogateConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus the GRPO surrogate, to be minimised, and diagnostics of the ratio.

    L = sum_{b,t} w_bt min(r_bt A_b, clip(r_bt, 1 - clip_low, 1 + clip_high) A_b),  r = pi_theta / pi_phi,
    with w the token weights of `config.length_normalization`. Its gradient in theta is the surrogate gradient
    H(theta, phi) (arXiv 2607.01083). As an estimator of the population H it is unbiased for 'response' and
    'constant'; for 'tokens' it is a ratio of sums with bias O(1/B). Its bias as an estimate of H(theta, theta)
    is what this project measures.

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi as recorded by the sampler. Never optional.
      advantages: [...] float, one for each response.
      mask: [..., R] bool, True on the response's tokens.
      config: clip range and length normalization.

    Returns:
      (loss, diagnostics): a scalar, and the scalars of `ratio_diagnostics`.

    Raises:
      ValueError: if `behavior_logprobs` is None: there is no on-policy fallback.
      AssertionError: if shapes disagree.
    """
    clip = functools.partial(grpo_clip, clip_low=config.clip_low, clip_high=config.clip_high)
    return corrected_surrogate(
        policy_logprobs, behavior_logprobs, policy_logprobs, advantages, mask, config.length_normalization, clip
    )


def corrected_surrogate(
    policy_logprobs: Array,
    behavior_logprobs: Array,
    proximal_logprobs: Array,
    advantages: Array,
    mask: Array,
    length_normalization: str,
    correction: TokenObjective,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus sum_{b,t} w_bt f_bt, to be minimised, with f the correction's per-token objective; and diagnostics.

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi as recorded by the sampler. Never optional.
      proximal_logprobs: [..., R] float, log-probabilities at the start of the update. With one optimizer step per
        rollout batch these are the policy's own, which may be passed: they are held constant.
      advantages: [...] float, one for each response.
      mask: [..., R] bool, True on the response's tokens.
      length_normalization: that of the token weights w.
      correction: see `corrections.registry.bind`.

    Returns:
      (loss, diagnostics): a scalar, and the scalars of `ratio_diagnostics`.

    Raises:
      ValueError: if `behavior_logprobs` is None: there is no on-policy fallback.
      AssertionError: if shapes disagree.
    """
    if behavior_logprobs is None:
        raise ValueError(
            "behavior_logprobs is None: pass the log-probabilities that the sampler recorded. "
            "The surrogate never assumes that rollouts are on-policy."
        )
    chex.assert_equal_shape([policy_logprobs, behavior_logprobs, proximal_logprobs, mask])
    chex.assert_shape(advantages, policy_logprobs.shape[:-1])
    # Masked before anything is computed from them, so that a NaN there reaches neither the value nor the gradient.
    policy_logprobs, behavior_logprobs, proximal_logprobs = (
        jnp.where(mask, logprobs, 0.0) for logprobs in (policy_logprobs, behavior_logprobs, proximal_logprobs)
    )
    advantages = jax.lax.stop_gradient(advantages)[..., None]
    batch = TokenBatch(
        policy_logprobs=policy_logprobs,
        behavior_logprobs=jax.lax.stop_gradient(behavior_logprobs),
        proximal_logprobs=jax.lax.stop_gradient(proximal_logprobs),
        advantages=advantages,
        mask=jnp.asarray(mask),
        weights=jnp.ones_like(advantages),
    )
    loss = -jnp.sum(token_weights(mask, length_normalization) * correction(batch))
    constant = dataclasses.replace(batch, policy_logprobs=jax.lax.stop_gradient(policy_logprobs))
    cut = (token_slopes(constant, correction) == 0) & (advantages != 0)
    return loss, ratio_diagnostics(batch.log_ratio(), advantages, mask, cut)


def token_slopes(batch: TokenBatch, correction: TokenObjective) -> jax.Array:
    """d objective / d log pi_theta of each token, before length normalization."""

    def total(policy_logprobs):
        objective = correction(dataclasses.replace(batch, policy_logprobs=policy_logprobs))
        return jnp.sum(jnp.where(batch.mask, objective, 0.0))

    return jax.grad(total)(batch.policy_logprobs)


def ratio_diagnostics(raw_log_ratio: Array, advantages: Array, mask: Array, cut: Array) -> dict[str, jax.Array]:
    """Statistics over the unmasked tokens of the ratio as it is, before any clamp.

    ratio_mean, ratio_q01/q50/q99/max (nearest rank), clip_fraction (tokens whose gradient the clip, or whatever
    stands in its place, removes: those in `cut`), clip_fraction_positive and _negative (the same among tokens with
    A > 0 and A < 0), approx_kl (mean of r - 1 - log r, an unbiased estimate of KL(phi || theta) with positive
    terms), ess (effective sample size (sum r)^2 / (n sum r^2), in (0, 1]), log_ratio_second_moment (mean of
    (log r)^2).
    All are 0 when no token is unmasked, but for ess, which is 1.
    """
    x = jax.lax.stop_gradient(raw_log_ratio)
    active = jnp.asarray(mask)
    count = jnp.sum(active)
    at_least_one = jnp.maximum(count, 1)

    def mean(values):
        return jnp.sum(jnp.where(active, values, 0.0)) / at_least_one

    def fraction(event, among):
        return jnp.sum(event & among) / jnp.maximum(jnp.sum(among), 1)

    positive = active & (advantages > 0)
    negative = active & (advantages < 0)

    # In log space, so that a token with log-ratio 50 gives a small ess and no overflow.
    log_weights = jnp.where(active, x, -jnp.inf)
    log_ess = 2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights) - jnp.log(at_least_one)
    ess = jnp.where(count > 0, jnp.exp(jnp.where(count > 0, log_ess, 0.0)), 1.0)

    ordered = jnp.sort(jnp.where(active, x, jnp.inf).ravel())
    ranks = [jnp.clip(jnp.ceil(q * count).astype(int) - 1, 0, ordered.size - 1) for q in RATIO_QUANTILES]
    q01, q50, q99, largest = (jnp.where(count > 0, jnp.exp(ordered[rank]), 0.0) for rank in ranks)
    return {
        "ratio_mean": mean(jnp.exp(x)),
        "ratio_q01": q01,
        "ratio_q50": q50,
        "ratio_q99": q99,
        "ratio_max": largest,
        "clip_fraction": fraction(cut, active),
        "clip_fraction_positive": fraction(cut, positive),
        "clip_fraction_negative": fraction(cut, negative),
        "approx_kl": mean(jnp.expm1(x) - x),
        "ess": ess,
        "log_ratio_second_moment": mean(x**2),
    }
