"""Defines corrections that drop tokens or responses that are too far off-policy.

Each returns the per-token objective [..., R], to be maximized. The symbols are those of
`objective.tokens`, and clip(x) stands for clip(x, 1 - clip_low, 1 + clip_high). 1[c] is 1 where the
condition c holds, else 0.

Dropped tokens still count in the length normalization. Dropping is a bias of its own, on top of the
bias of the objective inside: it takes away what has moved most.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def _inside(weight: Array, low: float, high: float) -> jax.Array:
    """Keeps the weights in [low, high] and sets the others to 0."""
    return jnp.where((weight >= low) & (weight <= high), weight, 0.0)


def token_mis(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    ratio_low: float = 0.5,
    ratio_high: float = 5.0,
) -> Array:
    """Drops the tokens whose importance weight is outside a range.

    Formula: w 1[ratio_low <= w <= ratio_high] min(r A, clip(r) A).
    Source: masked importance sampling of IcePop, as TRL documents it.
    Verified: the gradient equals that of verl's code in float64.
    Bias: that of `token_is`, and that of the dropped tokens.
    Variance: the range bounds the weight.
    """
    weight = _inside(clamped_exp(tokens.proximal_log_weight()), ratio_low, ratio_high)
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def sequence_mis(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    ratio_low: float = 0.5,
    ratio_high: float = 5.0,
) -> Array:
    """Drops the responses whose importance weight is outside a range.

    Formula: W 1[ratio_low <= W <= ratio_high] min(r A, clip(r) A) with W = prod_t w.
    Source: masked importance sampling of IcePop, as TRL documents it. IcePop's range is for tokens;
    none is published for whole responses.
    Verified: the gradient equals that of verl's code in float64.
    Bias: that of `sequence_is`, and that of the dropped responses.
    Variance: the range bounds the weight.
    """
    weight = _inside(
        clamped_exp(tokens.response_sum(tokens.proximal_log_weight())), ratio_low, ratio_high
    )
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def negative_mask(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, delta: float = 0.5
) -> Array:
    """Drops the bad responses that the policy has already moved away from.

    Formula: 0 where A < 0 and mean_t log(pi_phi / pi_theta) > delta, else min(rho A, clip(rho) A).
    Source: DeepSeek-V3.2, as TRL documents it. delta is not published; 0.5 is TRL's suggestion.
    Verified: read in TRL's documentation.
    Bias and variance: as for `grpo_clip`. Dropping adds a bias, and dropped responses no longer
    push.
    """
    left_behind = tokens.response_mean(jax.lax.stop_gradient(-tokens.log_ratio())) > delta
    keep = jnp.where(left_behind & (tokens.advantages < 0), 0.0, 1.0)
    return keep * clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def dppo_tv(tokens: TokenBatch, *, probability_change: float = 0.2, penalty: float = 1e-3) -> Array:
    """Drops the tokens whose probability has moved outward by too much, and adds a penalty.

    Formula: m rho A - penalty (log rho)^2, where m is 0 if A > 0 and pi_theta - pi_phi >
    probability_change, 0 if A < 0 and pi_theta - pi_phi < -probability_change, and 1 otherwise.
    Source: DPPO, as in the loss of prime-rl.
    Verified: read in prime-rl's code; not run against it.
    Bias: the change is absolute, so rare tokens may move by any ratio. The penalty stays on every
    token and does not depend on A.
    Variance: the ratio of kept tokens is not bounded.
    """
    change = jax.lax.stop_gradient(
        jnp.exp(tokens.policy_logprobs) - jnp.exp(tokens.behavior_logprobs)
    )
    outward = jnp.where(tokens.advantages > 0, change, -change) > probability_change
    gain = jnp.where(outward & (tokens.advantages != 0), 0.0, tokens.ratio()) * tokens.advantages
    return gain - penalty * tokens.log_ratio() ** 2


def m2po_areal(tokens: TokenBatch, *, second_moment: float = 0.04) -> Array:
    """Drops the tokens of largest (log w)^2 until the mean of the others is below a bound.

    Formula: 1[token kept] rho A. The kept tokens have the smallest (log w)^2 of the batch. Their
    number is the largest whose mean stays below `second_moment`. Equal squares are dropped
    together.
    Source: M2PO, arXiv 2510.01161, as AReaL implements it; `m2po_authors` is the authors' code.
    Verified: read in AReaL's code; not run against it. AReaL multiplies its own loss by the mask.
    With its decoupled weight and one optimizer step per batch the gradient is the one here.
    Bias and variance: those of `token_is` among the kept tokens. The mask depends on the batch.
    """
    weights = tokens.token_weights(tokens.mask)
    square = tokens.proximal_log_weight() ** 2
    flat = jnp.where(weights > 0, square.ravel(), 0.0)
    order = jnp.argsort(flat)
    flat, weights = flat[order], weights[order]
    count = jnp.cumsum(weights)
    within = jnp.cumsum(weights * flat) < second_moment * count
    # The kept tokens are a prefix of the ascending squares. Means of ascending prefixes ascend, so
    # the longest prefix within the bound is kept. It ends where the next square differs.
    largest = jnp.max(jnp.where(within & _next_differs(flat), flat, -1.0))
    keep = jnp.where(square <= largest, 1.0, 0.0)
    return keep * tokens.ratio() * tokens.advantages


def _next_differs(ascending: Array) -> jax.Array:
    """Tells where a value of an ascending vector [n] differs from the next; True at the end."""
    return jnp.append(ascending[1:] > ascending[:-1], True)


def mu_grpo(
    tokens: TokenBatch,
    *,
    clip_low: float = 0.8,
    clip_high: float = 2.0,
    veto_low: float = 0.0,
    veto_high: float = 2.0,
) -> Array:
    """Clips widely, and drops the suffix after a veto in responses with negative advantage.

    Formula: 0 where A < 0 and an earlier rho of the response is outside [veto_low, veto_high], else
    min(rho A, clip(rho) A). PPO's clip leaves exactly these suffixes unbounded.
    Source: mu-GRPO, arXiv 2605.17570.
    Verified: second-hand. These could not be verified: the veto's direction (0 switches the lower
    side off), its threshold, the relaxed clip range, and whether the veto's own token stays.
    Bias and variance: as for `grpo_clip` with a wide range; the dropped suffixes add a bias.
    """
    ratio = tokens.ratio()
    vetoes = jnp.where(tokens.mask & ((ratio < veto_low) | (ratio > veto_high)), 1, 0)
    after_veto = jnp.cumsum(vetoes, axis=-1) - vetoes > 0
    keep = jnp.where(after_veto & (tokens.advantages < 0), 0.0, 1.0)
    return keep * clipped_objective(ratio, tokens.advantages, clip_low, clip_high)


def r1_reward_stable_reinforce(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    ratio_low: float = 1e-3,
    ratio_high: float = 1e3,
    sigmas: float = 3.0,
) -> Array:
    """Clips the ratio before exponentiation, and drops responses with outlying advantages.

    Formula: 0 where |A - mean(A)| > sigmas std(A), else min(rho' A, clip(rho') A) with rho' =
    exp(clip(log rho, log ratio_low, log ratio_high)). mean and std run over the batch's responses.
    Source: StableReinforce of R1-Reward, arXiv 2505.02835. Its consistency reward is no part of the
    loss. Another public system gives this name to a different rule.
    Verified: second-hand.
    Bias and variance: as for `grpo_clip`; the dropped responses add a bias. The filter reads the
    advantages' size and not only their sign, so `bias.corrected` has no exact gradient of it.
    """
    log_ratio = jnp.clip(tokens.log_ratio(), jnp.log(ratio_low), jnp.log(ratio_high))
    weights = tokens.weights / jnp.maximum(
        jnp.sum(tokens.weights), jnp.finfo(tokens.weights.dtype).tiny
    )
    mean = jnp.sum(weights * tokens.advantages)
    std = jnp.sqrt(jnp.sum(weights * (tokens.advantages - mean) ** 2))
    keep = jnp.where(jnp.abs(tokens.advantages - mean) > sigmas * std, 0.0, 1.0)
    return keep * clipped_objective(clamped_exp(log_ratio), tokens.advantages, clip_low, clip_high)
