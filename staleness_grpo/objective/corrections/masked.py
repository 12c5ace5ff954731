"""Corrections that drop tokens or responses that are too far off-policy.

Each returns the per-token objective, to be maximised. What is dropped still counts in the length normalization.
Dropping is a bias of its own, on top of that of the objective inside: it takes away what has moved most.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def _inside(weight: Array, low: float, high: float) -> jax.Array:
    return jnp.where((weight >= low) & (weight <= high), weight, 0.0)


def token_mis(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, ratio_low: float = 0.5, ratio_high: float = 5.0
) -> Array:
    """w 1[ratio_low <= w <= ratio_high] min(r A, clip(r) A), per token   (masked importance sampling, IcePop; TRL)."""
    weight = _inside(clamped_exp(tokens.proximal_log_weight()), ratio_low, ratio_high)
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def sequence_mis(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, ratio_low: float = 0.5, ratio_high: float = 5.0
) -> Array:
    """`token_mis` with w = prod_t w of the whole response. IcePop's range is for tokens; none is published for this."""
    weight = _inside(clamped_exp(tokens.response_sum(tokens.proximal_log_weight())), ratio_low, ratio_high)
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def negative_mask(tokens: TokenBatch, *, clip_low: float, clip_high: float, delta: float = 0.5) -> Array:
    """`grpo_clip` without the responses with A < 0 and mean_t log(pi_phi / pi_theta) > delta   (DeepSeek-V3.2).

    Bad responses that theta has left already no longer push. delta is not published; 0.5 is TRL's suggestion.
    """
    left_behind = tokens.response_mean(jax.lax.stop_gradient(-tokens.log_ratio())) > delta
    keep = jnp.where(left_behind & (tokens.advantages < 0), 0.0, 1.0)
    return keep * clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def dppo_tv(tokens: TokenBatch, *, probability_change: float = 0.2, penalty: float = 1e-3) -> Array:
    """rho A - penalty (log rho)^2, without A where the token's probability has moved outward by too much.

    Dropped: A > 0 and pi_theta - pi_phi > `probability_change`, or A < 0 and pi_theta - pi_phi < -it (DPPO, as in
    prime-rl's loss). Absolute, so that rare tokens may move by any ratio. The penalty stays on every token and does
    not depend on A.
    """
    change = jax.lax.stop_gradient(jnp.exp(tokens.policy_logprobs) - jnp.exp(tokens.behavior_logprobs))
    outward = jnp.where(tokens.advantages > 0, change, -change) > probability_change
    gain = jnp.where(outward & (tokens.advantages != 0), 0.0, tokens.ratio()) * tokens.advantages
    return gain - penalty * tokens.log_ratio() ** 2


def m2po_areal(tokens: TokenBatch, *, second_moment: float = 0.04) -> Array:
    """rho A without the tokens of largest (log pi_prox - log pi_phi)^2, so many that the others' mean is below a bound.

    M2PO (arXiv 2510.01161) as AReaL implements it; `m2po_authors` is the authors' code. Equal squares are dropped
    together. AReaL multiplies its own loss by the mask: with its decoupled weight and one optimizer step per batch
    the gradient is the one here. The mask depends on the batch.
    """
    weights = tokens.token_weights(tokens.mask)
    square = tokens.proximal_log_weight() ** 2
    flat = jnp.where(weights > 0, square.ravel(), 0.0)
    order = jnp.argsort(flat)
    flat, weights = flat[order], weights[order]
    count = jnp.cumsum(weights)
    within = jnp.cumsum(weights * flat) < second_moment * count
    # The kept set ends with its largest square; means of ascending prefixes ascend, so the last good prefix it is.
    largest = jnp.max(jnp.where(within & (_next_differs(flat)), flat, -1.0))
    keep = jnp.where(square <= largest, 1.0, 0.0)
    return keep * tokens.ratio() * tokens.advantages


def _next_differs(ascending: Array) -> jax.Array:
    return jnp.append(ascending[1:] > ascending[:-1], True)


def mu_grpo(
    tokens: TokenBatch,
    *,
    clip_low: float = 0.8,
    clip_high: float = 2.0,
    veto_low: float = 0.0,
    veto_high: float = 2.0,
) -> Array:
    """A wide PPO clip, and no suffix after a veto in negative responses   (mu-GRPO, arXiv 2605.17570, second-hand).

    In responses with A < 0, the tokens *after* the first whose rho leaves [veto_low, veto_high] are dropped: PPO's
    clip leaves exactly these unbounded. Could not be verified: the veto's direction (0 switches the lower side off),
    its threshold, the relaxed clip range, and whether the veto's own token stays.
    """
    ratio = tokens.ratio()
    vetoes = jnp.where(tokens.mask & ((ratio < veto_low) | (ratio > veto_high)), 1, 0)
    after_veto = jnp.cumsum(vetoes, axis=-1) - vetoes > 0
    keep = jnp.where(after_veto & (tokens.advantages < 0), 0.0, 1.0)
    return keep * clipped_objective(ratio, tokens.advantages, clip_low, clip_high)


def stable_reinforce(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    ratio_low: float = 1e-3,
    ratio_high: float = 1e3,
    sigmas: float = 3.0,
) -> Array:
    """`grpo_clip` with the ratio clipped to [ratio_low, ratio_high] before exponentiation, without outlying advantages.

    Dropped: responses whose advantage is more than `sigmas` standard deviations from the batch's mean advantage
    (StableReinforce, R1-Reward, arXiv 2505.02835, second-hand; its consistency reward is no part of the loss). The
    filter reads the advantages' size, not only their sign: see `bias.corrected`.
    """
    log_ratio = jnp.clip(tokens.log_ratio(), jnp.log(ratio_low), jnp.log(ratio_high))
    weights = tokens.weights / jnp.maximum(jnp.sum(tokens.weights), jnp.finfo(tokens.weights.dtype).tiny)
    mean = jnp.sum(weights * tokens.advantages)
    std = jnp.sqrt(jnp.sum(weights * (tokens.advantages - mean) ** 2))
    keep = jnp.where(jnp.abs(tokens.advantages - mean) > sigmas * std, 0.0, 1.0)
    return keep * clipped_objective(clamped_exp(log_ratio), tokens.advantages, clip_low, clip_high)
