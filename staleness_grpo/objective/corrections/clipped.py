"""Defines corrections that bound the ratio, as PPO does.

Each function returns the objective of each token, [..., R], which is maximized. `objective.tokens`
defines the symbols. clip(x) means clip(x, 1 - clip_low, 1 + clip_high).

All these corrections are biased at any lag > 0, for two reasons:

  - The ratio of a token leaves out the ratio of the tokens before it (its prefix).
  - The clip removes the gradient beyond a bound. Most clips do so only for one sign of the
    advantage.

Until a first token is clipped, the bias is of first order in the drift. After that, the bias can
reverse the gradient. The variance is bounded where the bounds act.
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
    Source: GRPO, DeepSeekMath, arXiv 2402.03300. The optional penalty of the paper, towards a
    reference policy, is not implemented, because this package has no reference policy.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias and variance: see the docstring of the module.

    Two other corrections are this function with other settings:
      `clip_higher` is DAPO (arXiv 2503.14476). clip_high is 0.28, and the sum is divided by the
        number of all tokens of the batch. Its gradient also equals verl's gradient in float64.
      `dr_grpo` is Dr. GRPO (arXiv 2503.20783), with constant length normalization and without std.
        The mean is over the whole group. It could not be verified whether the paper means the
        leave-one-out mean, which would only scale A by G / (G - 1).
    """
    return clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def dual_clip(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 3.0) -> Array:
    """Clips as GRPO does, and bounds the ratio of tokens with A < 0 from above as well.

    Formula: max(min(rho A, clip(rho) A), cap A) if A < 0, else min(rho A, clip(rho) A).
    Source: dual-clip PPO, arXiv 1912.09729, with the published cap of 3. It is the default policy
    loss of verl. The cap must exceed 1, or the clip acts on fresh rollouts.
    Verified: value and gradient equal those of verl's code in float64. TRL's `delta` gives the same
    gradient if the cap is at least 1 + clip_high, as its code was read.
    Bias: the bias of `grpo_clip`. Tokens with A < 0 and rho > cap also lose their gradient, so the
    policy no longer moves back from a token that it has raised too far.
    Variance: bounded for both signs of A. With `grpo_clip` it is not bounded for A < 0.
    """
    clipped = clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)
    bounded = jnp.maximum(clipped, cap * tokens.advantages)
    return jnp.where(tokens.advantages < 0, bounded, clipped)


def sapo(tokens: TokenBatch, *, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Array:
    """Replaces the clip by a smooth gate, which fades out tokens far from the behavior policy.

    Formula: (4 / tau) sigmoid(tau (rho - 1)) A; tau = tau_positive if A > 0, else tau_negative.
    Source: SAPO, arXiv 2511.20347, with the published temperatures.
    Verified: value and gradient equal those of verl's code in float64. verl and TRL average over
    tokens, then over responses, which is the length normalization 'response'.
    Bias: the score of a token has weight rho / cosh(tau (rho - 1) / 2)^2. So the bias is that of
    `token_is` up to second order in rho - 1. Beyond, tokens fade out for both signs of A.
    Variance: bounded, because the weight tends to 0 for small and for large rho.
    """
    tau = jnp.where(tokens.advantages > 0, tau_positive, tau_negative)
    return 4 / tau * jax.nn.sigmoid(tau * (tokens.ratio() - 1)) * tokens.advantages


def gspo(tokens: TokenBatch, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> Array:
    """Clips one ratio for the whole response: the geometric mean of the ratios of its tokens.

    Formula: min(s A, clip(s) A) with s = sg(exp(mean_t log rho)) pi_theta / sg(pi_theta).
    Source: GSPO, arXiv 2507.18071. This is the token form of the paper's objective, with its
    published clip range. The objective is a mean over responses, so the length normalization must
    be 'response'.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: the geometric mean is not an importance weight, so there is a bias even without the clip.
    Variance: as with PPO's clip, which here keeps or cuts whole responses.
    """
    sequence_ratio = clamped_exp(tokens.response_mean(tokens.log_ratio()))
    ratio = jax.lax.stop_gradient(sequence_ratio) * tokens.score()
    return clipped_objective(ratio, tokens.advantages, clip_low, clip_high)


def cispo(tokens: TokenBatch, *, clip_low: float = 1.0, clip_high: float = 3.0) -> Array:
    """Bounds the weight of a token instead of removing its gradient.

    Formula: sg(clip(rho)) A log pi_theta.
    Source: CISPO, MiniMax-M1, arXiv 2506.13585. The defaults keep ratios in [0, 4], so only the
    upper bound acts, as in off-policy use. The paper tunes only the upper bound, and gives no value
    for stale rollouts.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: no token loses its gradient. The ratio of the prefix is left out, and large ratios are
    reduced to the upper bound.
    Variance: bounded by the upper bound on the weight.
    """
    weight = jnp.clip(tokens.ratio(), 1 - clip_low, 1 + clip_high)
    return jax.lax.stop_gradient(weight) * tokens.advantages * tokens.policy_logprobs


def decoupled_ppo(tokens: TokenBatch, *, clip_low: float, clip_high: float) -> Array:
    """Clips the ratio to the proximal policy, and weights each token by proximal over behavior.

    Formula: sg(w) min(r A, clip(r) A).
    Source: AReaL, arXiv 2505.24298. The proximal policy is recomputed at the start of the update,
    as its authors do. The weight has no upper bound, as in the paper. AReaL's code has an option to
    drop tokens of large w while still dividing by the number of all tokens. This option is not
    implemented here.
    Verified: compared by reading AReaL's code, but not by running it.
    Bias: with one optimizer step per rollout batch, r is 1 and the clip never acts. Then the
    gradient equals the gradient of `token_is`.
    Variance: grows with the weight of a single token, which has no bound.
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
    """Makes PPO's clip range narrower for the stalest tokens of the batch.

    Formula, with d = sg(log rho) and q the `quantile` of |d| over the batch's tokens:

        c = 2 h q^n / (q^n + |d|^n) where |d| > q, else 1;  h = hill_at_quantile, n = hill_exponent
        upper bound 1 + clip_high c where d > 0, lower bound 1 - clip_low c where d < 0

    Source: SAT, arXiv 2607.18722.
    Verified: second-hand. The normalization of the Hill factor could not be verified. With h = 1/2
    c is the plain Hill function, which jumps from 1 to 1/2 at q. With h = 1, c is continuous at q.
    Bias and variance: the range is never wider than the range of `grpo_clip`. It depends on the
    batch.
    """
    magnitude = jnp.abs(jax.lax.stop_gradient(tokens.log_ratio()))
    threshold = weighted_quantile(magnitude.ravel(), tokens.token_weights(tokens.mask), quantile)
    beyond = tokens.mask & (magnitude > threshold)
    relative = jnp.where(
        beyond & (threshold > 0), magnitude / jnp.where(threshold > 0, threshold, 1.0), 1.0
    )
    # With a quantile of 0 the formula is not defined. The published pseudocode then keeps c = 1.
    factor = jnp.where(
        beyond & (threshold > 0), 2 * hill_at_quantile / (1 + relative**hill_exponent), 1.0
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
    """Computes PPO's clip range from the second moment of the batch, as in the authors' code.

    The rule looks only at outward tokens, which the objective pushes further from the behavior
    policy: A > 0 and rho > 1, or A < 0 and rho < 1. The rule acts if the mean (log rho)^2 of the
    outward tokens exceeds `second_moment`.

    Formula, with tau the largest |log rho| of the batch for which mean(min(|log rho|, tau)^2) is
    below `second_moment`, or 0 if there is no such |log rho|:

        min(rho A, clip(rho, min(e^-tau, 1 - clip_low), max(e^tau, 1 + clip_high)) A)

    Tokens with |log rho| = tau are clipped as well.
    Source: M2PO, arXiv 2510.01161, as in the authors' code. The text of the paper masks tokens
    instead, as `m2po_areal` does.
    Verified: compared by reading the authors' code, but not by running it.
    Bias and variance: as with PPO's clip. The bounds depend on the batch and have no gradient.
    """
    log_ratio = jax.lax.stop_gradient(tokens.log_ratio())
    outward = (tokens.advantages * log_ratio) > 0
    weights = tokens.token_weights(outward)
    square = jnp.where(weights > 0, (log_ratio**2).ravel(), jnp.inf)
    order = jnp.argsort(square)
    square, weights = square[order], weights[order]
    has_weight = weights > 0
    square = jnp.where(has_weight, square, 0.0)
    cumulated_sum, total = jnp.cumsum(weights * square), jnp.sum(weights)
    capped_sum = cumulated_sum + square * (total - jnp.cumsum(weights))
    exceeds = has_weight & (capped_sum >= second_moment * total)
    below = jnp.where(has_weight & ~exceeds, square, 0.0)
    over_budget = jnp.sum(weights * square) > second_moment * total
    cap = jnp.where(over_budget, jnp.sqrt(jnp.max(below)), jnp.inf)
    low, high = jnp.minimum(jnp.exp(-cap), 1 - clip_low), jnp.maximum(jnp.exp(cap), 1 + clip_high)
    ratio = tokens.ratio()
    inside = jnp.where(tokens.advantages > 0, ratio <= 1 + clip_high, ratio >= 1 - clip_low)
    cut = outward & (jnp.abs(log_ratio) >= cap) & ~inside
    bound = jnp.where(tokens.advantages > 0, high, low)
    return jnp.where(cut, jnp.where(cut, bound, 0.0), ratio) * tokens.advantages
