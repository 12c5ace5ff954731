"""Defines corrections that bound the ratio as PPO does.

Each returns the per-token objective [..., R], to be maximized. The symbols are those of
`objective.tokens`, and clip(x) stands for clip(x, 1 - clip_low, 1 + clip_high).

All are biased at any lag, because a token's ratio leaves out the ratio of its prefix. Beyond the
bounds the gradient is also cut on one side only. The bias is first order in the drift before the
first token is clipped; afterwards it can reverse the gradient. Variance is bounded where the bounds
act.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import (
    TokenBatch,
    clamped_exp,
    clipped_objective,
    weighted_quantile,
)
from staleness_grpo.types import Array


def grpo_clip(tokens: TokenBatch, *, clip_low: float, clip_high: float) -> Array:
    """Clips the ratio to the behavior policy, as GRPO does.

    Formula: min(rho A, clip(rho) A).
    Source: GRPO, DeepSeekMath, arXiv 2402.03300. The published optional penalty towards a reference
    policy is left out: there is no reference policy here.
    Verified: the gradient equals that of verl's code in float64.
    Bias and variance: see the module.

    Two corrections are this one under other settings.
    `clip_higher` is DAPO (arXiv 2503.14476): clip_high is 0.28, and the sum is divided by all
    tokens of the batch. It equals verl's code as well.
    `dr_grpo` is Dr. GRPO (arXiv 2503.20783): constant length normalization and no std. The mean is
    over the whole group. Whether the leave-one-out mean is meant could not be verified; it would
    only scale A by G / (G - 1).
    """
    return clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def gspo(tokens: TokenBatch, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Array:
    """Clips one ratio for the whole response, the geometric mean of its tokens' ratios.

    Formula: min(s A, clip(s) A) with s = sg(exp(mean_t log rho)) pi_theta / sg(pi_theta).
    Source: GSPO, arXiv 2507.18071. This is the token form of the paper's objective, with its
    published range. It is a mean over sequences, so length normalization is 'response'.
    Verified: the gradient equals that of verl's code in float64.
    Bias: the geometric mean is no importance weight, so the bias does not vanish with the clip.
    Variance: as for PPO's clip, which here keeps or cuts whole responses.
    """
    sequence_ratio = clamped_exp(tokens.response_mean(tokens.log_ratio()))
    ratio = jax.lax.stop_gradient(sequence_ratio) * tokens.score()
    return clipped_objective(ratio, tokens.advantages, clip_low, clip_high)


def cispo(tokens: TokenBatch, *, clip_low: float = 1.0, clip_high: float = 3.0) -> Array:
    """Bounds the weight of a token in place of cutting its gradient.

    Formula: sg(clip(rho)) A log pi_theta.
    Source: CISPO, MiniMax-M1, arXiv 2506.13585. The defaults are the one-sided off-policy use, with
    ratios in [0, 4]. The paper tunes the upper bound alone and does not settle its value for stale
    rollouts.
    Verified: the gradient equals that of verl's code in float64.
    Bias: no token loses its gradient; the ratio of the prefix is left out, and large ratios are
    capped.
    Variance: the upper bound on the weight bounds it.
    """
    weight = jnp.clip(tokens.ratio(), 1 - clip_low, 1 + clip_high)
    return jax.lax.stop_gradient(weight) * tokens.advantages * tokens.policy_logprobs


def decoupled_ppo(tokens: TokenBatch, *, clip_low: float, clip_high: float) -> Array:
    """Clips against the proximal policy and weights by the proximal over the behavior policy.

    Formula: sg(w) min(r A, clip(r) A).
    Source: AReaL, arXiv 2505.24298. The proximal policy is recomputed at the start of the update,
    as its authors do. The weight is uncapped, as in the paper. AReaL's code can drop tokens of
    large w while it divides by the original number of tokens; that is not here.
    Verified: read in AReaL's code; not run against it.
    Bias: with one optimizer step per rollout batch r is 1, so the clip never acts and the gradient
    is that of `token_is`.
    Variance: grows with one token's weight, which nothing bounds.
    """
    weight = clamped_exp(tokens.proximal_log_weight())
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def sat(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    quantile: float = 0.9,
    hill_exponent: float = 2.0,
    hill_at_quantile: float = 0.5,
) -> Array:
    """Tightens PPO's clip for the stalest tokens of the batch.

    Formula, with d = sg(log rho) and q the `quantile` of |d| over the batch's tokens:

        c = 2 h q^n / (q^n + |d|^n) where |d| > q, else 1;  h = hill_at_quantile, n = hill_exponent
        upper bound 1 + clip_high c where d > 0, lower bound 1 - clip_low c where d < 0

    Source: SAT, arXiv 2607.18722.
    Verified: second-hand. The normalization of the Hill factor could not be verified. h = 1/2 is
    the plain Hill function, which jumps at q; h = 1 is continuous there.
    Bias and variance: never looser than `grpo_clip`, with a bound that depends on the batch.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(tokens.log_ratio()))
    stalest = weighted_quantile(magnitude.ravel(), tokens.token_weights(tokens.mask), quantile)
    gated = tokens.mask & (magnitude > stalest)
    relative = jnp.where(
        gated & (stalest > 0), magnitude / jnp.where(stalest > 0, stalest, 1.0), 1.0
    )
    # A quantile of 0 gives the published rule no scale. Its pseudocode then contracts nothing.
    factor = jnp.where(
        gated & (stalest > 0), 2 * hill_at_quantile / (1 + relative**hill_exponent), 1.0
    )
    rising = tokens.log_ratio() > 0
    low = clip_low * jnp.where(rising, 1.0, factor)
    high = clip_high * jnp.where(rising, factor, 1.0)
    return clipped_objective(tokens.ratio(), tokens.advantages, low, high)


def m2po_authors(
    tokens: TokenBatch,
    *,
    second_moment: float = 0.04,
    clip_low: float = 0.3,
    clip_high: float = 0.5,
) -> Array:
    """Sets the bounds of PPO's clip from the batch's second moment, as the authors' code does.

    The rule reads the tokens that the objective pushes further out: A > 0 and rho > 1, or A < 0 and
    rho < 1. It acts if their mean (log rho)^2 exceeds `second_moment`.

    Formula, with tau the largest observed |log rho| at which mean(min(|log rho|, tau)^2) stays
    below `second_moment`, or 0 if there is none:

        min(rho A, clip(rho, min(e^-tau, 1 - clip_low), max(e^tau, 1 + clip_high)) A)

    Tokens at the cap itself are clipped as well.
    Source: M2PO, arXiv 2510.01161, as in the authors' code. The paper's text masks tokens instead:
    see `m2po_areal`.
    Verified: read in the authors' code; not run against it.
    Bias and variance: as for PPO's clip. The bounds depend on the batch and are held constant under
    differentiation.
    """
    log_ratio = jax.lax.stop_gradient(tokens.log_ratio())
    outward = (tokens.advantages * log_ratio) > 0
    weights = tokens.token_weights(outward)
    square = jnp.where(weights > 0, (log_ratio**2).ravel(), jnp.inf)
    order = jnp.argsort(square)
    square, weights = square[order], weights[order]
    active = weights > 0
    square = jnp.where(active, square, 0.0)
    cumulated, total = jnp.cumsum(weights * square), jnp.sum(weights)
    capped_sum = cumulated + square * (total - jnp.cumsum(weights))
    exceeds = active & (capped_sum >= second_moment * total)
    below = jnp.where(active & ~exceeds, square, 0.0)
    over_budget = jnp.sum(weights * square) > second_moment * total
    cap = jnp.where(over_budget, jnp.sqrt(jnp.max(below)), jnp.inf)
    low, high = jnp.minimum(jnp.exp(-cap), 1 - clip_low), jnp.maximum(jnp.exp(cap), 1 + clip_high)
    ratio = tokens.ratio()
    inside = jnp.where(tokens.advantages > 0, ratio <= 1 + clip_high, ratio >= 1 - clip_low)
    cut = outward & (jnp.abs(log_ratio) >= cap) & ~inside
    bound = jnp.where(tokens.advantages > 0, high, low)
    return jnp.where(cut, jnp.where(cut, bound, 0.0), ratio) * tokens.advantages
