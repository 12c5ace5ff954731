"""Corrections that bound the ratio as PPO does: min(r A, clip(r) A).

Each returns the per-token objective, to be maximised. All are biased at any lag: a token's ratio leaves out that of
its prefix, and beyond the bounds the gradient is cut on one side only. The bias is first order in the drift
before the first token is clipped and can turn the gradient round after. Variance is bounded where the bounds act.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective, weighted_quantile
from staleness_grpo.types import Array


def grpo_clip(tokens: TokenBatch, *, clip_low: float, clip_high: float) -> Array:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)   (GRPO, arXiv 2402.03300).

    The ratio is that to the behavior policy. The published optional penalty towards a reference policy is left out:
    there is no reference policy here. Under other names: `clip_higher`, clip_high 0.28 and division by all tokens of
    the batch (DAPO, arXiv 2503.14476); `dr_grpo`, constant length normalization and no std (Dr. GRPO, arXiv
    2503.20783; with the mean over the whole group: whether the leave-one-out mean is meant could not be verified,
    and it would only scale A by G / (G - 1)).
    """
    return clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def gspo(tokens: TokenBatch, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Array:
    """min(s A, clip(s) A), s = sg(exp(mean_t log rho)) pi_theta / sg(pi_theta)   (GSPO, arXiv 2507.18071).

    One ratio for the response, the geometric mean of its tokens': the clip keeps or cuts whole responses. The
    token form of the paper's objective, with its published range; sequence mean, so length normalization
    'response'. The geometric mean is no importance weight, so the bias does not vanish with the clip.
    """
    sequence_ratio = clamped_exp(tokens.response_mean(tokens.log_ratio()))
    ratio = jax.lax.stop_gradient(sequence_ratio) * tokens.score()
    return clipped_objective(ratio, tokens.advantages, clip_low, clip_high)


def cispo(tokens: TokenBatch, *, clip_low: float = 1.0, clip_high: float = 3.0) -> Array:
    """sg(clip(rho, 1 - clip_low, 1 + clip_high)) A log pi_theta   (CISPO, MiniMax-M1, arXiv 2506.13585).

    No token loses its gradient; the weight is bounded instead. Defaults: the one-sided off-policy use, ratios in
    [0, 4]; the paper tunes the upper bound alone and does not settle its value for stale rollouts.
    """
    weight = jnp.clip(tokens.ratio(), 1 - clip_low, 1 + clip_high)
    return jax.lax.stop_gradient(weight) * tokens.advantages * tokens.policy_logprobs


def decoupled_ppo(tokens: TokenBatch, *, clip_low: float, clip_high: float) -> Array:
    """sg(w) min(r A, clip(r) A), r = pi_theta/pi_prox, w = pi_prox/pi_phi   (AReaL, arXiv 2505.24298).

    pi_prox is recomputed at the start of the update, as its authors do. With one optimizer step per rollout batch
    r is 1, the clip never acts and the gradient is that of `token_is`. The weight is uncapped, as in the paper;
    AReaL's code can drop tokens of large w while it divides by the original number of tokens.
    """
    weight = clamped_exp(tokens.proximal_log_weight())
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def sat(
    tokens: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    quantile: float = 0.9,
    hill_exponent: float = 2.0,
    hill_at_quantile: float = 0.5,
) -> Array:
    """PPO's clip, tighter for the stalest tokens of the batch   (SAT, arXiv 2607.18722, second-hand).

        d = sg(log rho), q = the `quantile` of |d| over the batch's tokens; where |d| > q, with
        c = 2 h q^n / (q^n + |d|^n), h = `hill_at_quantile`, n = `hill_exponent`:
        d > 0: upper bound 1 + clip_high c;    d < 0: lower bound 1 - clip_low c.

    Never looser than `grpo_clip`, with a bound that depends on the batch. Could not be verified: the normalization
    of the Hill factor. h = 1/2 is the plain Hill function, which jumps at q; h = 1 is continuous there.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(tokens.log_ratio()))
    stalest = weighted_quantile(magnitude.ravel(), tokens.token_weights(tokens.mask), quantile)
    gated = tokens.mask & (magnitude > stalest)
    relative = jnp.where(gated & (stalest > 0), magnitude / jnp.where(stalest > 0, stalest, 1.0), 1.0)
    # A quantile of 0 leaves the published rule without a scale: its pseudocode then contracts nothing.
    factor = jnp.where(gated & (stalest > 0), 2 * hill_at_quantile / (1 + relative**hill_exponent), 1.0)
    rising = tokens.log_ratio() > 0
    low = clip_low * jnp.where(rising, 1.0, factor)
    high = clip_high * jnp.where(rising, factor, 1.0)
    return clipped_objective(tokens.ratio(), tokens.advantages, low, high)


def m2po_authors(
    tokens: TokenBatch, *, second_moment: float = 0.04, clip_low: float = 0.3, clip_high: float = 0.5
) -> Array:
    """PPO's clip with bounds from the batch's second moment   (M2PO, arXiv 2510.01161, as in the authors' code).

    Among the tokens that the objective pushes further out (A > 0 and rho > 1, or A < 0 and rho < 1): if the mean
    of (log rho)^2 exceeds `second_moment`, the cap tau is the largest observed |log rho| for which the mean of
    min(|log rho|, tau)^2 stays below it, 0 if there is none. Tokens at or beyond the cap are clipped to e^-tau or
    e^tau, but never tighter than 1 - clip_low and 1 + clip_high. The paper's text masks tokens instead: see
    `m2po_areal`. The bounds depend on the batch; they are held constant under differentiation.
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
