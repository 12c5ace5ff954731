"""Defines corrections that drop tokens or responses which are too far off-policy.

Each function returns the objective of each token, [..., R], which is maximized. `objective.tokens`
defines the symbols. clip(x) means clip(x, 1 - clip_low, 1 + clip_high). 1[c] is 1 if condition c
holds, else 0.

The length normalization still includes the dropped tokens. Dropping adds a bias to the bias of the
objective that is applied to the kept tokens, because it removes the tokens that have moved most.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def _zero_outside(weight: Array, low: float, high: float) -> jax.Array:
    """Returns each weight that is in [low, high], and 0 for all others. A weight of NaN stays."""
    return jnp.where((weight < low) | (weight > high), 0.0, weight)


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
    Source: the masked importance sampling of IcePop, as documented by TRL.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: the bias of `token_is`, and an additional bias from the dropped tokens.
    Variance: bounded, because no kept weight exceeds ratio_high.
    """
    weight = _zero_outside(clamped_exp(tokens.proximal_log_weight()), ratio_low, ratio_high)
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
    Source: the masked importance sampling of IcePop, as documented by TRL. IcePop's range is for
    tokens. No range for whole responses is published.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: the bias of `sequence_is`, and an additional bias from the dropped responses.
    Variance: bounded, because no kept weight exceeds ratio_high.
    """
    weight = _zero_outside(
        clamped_exp(tokens.response_sum(tokens.proximal_log_weight())), ratio_low, ratio_high
    )
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def negative_mask(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, delta: float = 0.5
) -> Array:
    """Drops responses with A < 0 that have already become much less probable.

    Formula: 0 where A < 0 and mean_t log(pi_phi / pi_theta) > delta, else min(rho A, clip(rho) A).
    Source: DeepSeek-V3.2, as documented by TRL. delta is not published; TRL suggests 0.5.
    Verified: compared by reading TRL's documentation.
    Bias and variance: as with `grpo_clip`, with an additional bias from the dropped responses. They
    no longer push the policy away from themselves.
    """
    much_less_probable = tokens.response_mean(jax.lax.stop_gradient(-tokens.log_ratio())) > delta
    keep = jnp.where(much_less_probable & (tokens.advantages < 0), 0.0, 1.0)
    return keep * clipped_objective(tokens.ratio(), tokens.advantages, clip_low, clip_high)


def dppo_tv(tokens: TokenBatch, *, probability_change: float = 0.2, penalty: float = 1e-3) -> Array:
    """Drops tokens whose probability has moved too far in the direction of A, and adds a penalty.

    Formula: m rho A - penalty (log rho)^2, with

        m = 0 if A > 0 and pi_theta - pi_phi > probability_change
        m = 0 if A < 0 and pi_theta - pi_phi < -probability_change
        m = 1 otherwise

    Source: DPPO, as in the loss of prime-rl.
    Verified: compared by reading prime-rl's code, but not by running it.
    Bias: the limit is on the difference of probabilities, so the ratio of a rare token may become
    large. The penalty acts on every token and does not depend on A.
    Variance: not bounded, because the ratios of the kept tokens are not bounded.
    """
    change = jax.lax.stop_gradient(
        jnp.exp(tokens.policy_logprobs) - jnp.exp(tokens.behavior_logprobs)
    )
    outward = jnp.where(tokens.advantages > 0, change, -change) > probability_change
    masked_gain = (
        jnp.where(outward & (tokens.advantages != 0), 0.0, tokens.ratio()) * tokens.advantages
    )
    return masked_gain - penalty * tokens.log_ratio() ** 2


def _log_complement(logprobs: Array) -> jax.Array:
    """Returns log(1 - p) of log p. 1 - p counts as at least 1e-8, so the result is finite."""
    return jnp.log(-jnp.expm1(jnp.minimum(logprobs, -1e-8)))


def binary_kl(logprobs_p: Array, logprobs_q: Array) -> jax.Array:
    """Returns D(p, q) = p log(p / q) + (1 - p) log((1 - p) / (1 - q)) of log p and log q.

    This is the Kullback-Leibler divergence if a policy only tells a token from all other tokens. It
    is at most the divergence of the two policies. NaN stays NaN.
    """
    p = jnp.exp(jnp.minimum(logprobs_p, 0.0))
    complement = _log_complement(logprobs_p) - _log_complement(logprobs_q)
    return p * (logprobs_p - logprobs_q) + (1 - p) * complement


def dppo_kl(tokens: TokenBatch, *, kl_threshold: float = 0.05, cap: float = 20.0) -> Array:
    """Drops tokens that moved in the direction of A if their binary divergence is too large.

    Formula: sg(m min(rho, cap)) A log pi_theta, with

        m = 0 if D(pi_phi, pi_theta) > kl_threshold, and A > 0 and rho > 1, or A < 0 and rho < 1
        m = 1 otherwise

    Here D is `binary_kl` of the token's probabilities.
    Source: DPPO, arXiv 2602.04879, as in verl. kl_threshold is that of verl's example. The cap is
    the default of verl's loss, and the example has 10000 instead. There is no penalty, which
    `dppo_tv` has from prime-rl.
    Verified: the gradient equals the gradient of verl's code in float64. verl adds 1e-8 to 1 - p
    for every p, which may matter if D is very close to the threshold.
    Bias: as with PPO's clip, but a rare token may change its ratio more than a frequent one.
    Variance: bounded by the cap.
    """
    policy_logprobs = jax.lax.stop_gradient(tokens.policy_logprobs)
    too_far = binary_kl(tokens.behavior_logprobs, policy_logprobs) > kl_threshold
    outward = tokens.advantages * (policy_logprobs - tokens.behavior_logprobs) > 0
    weight = jnp.minimum(jax.lax.stop_gradient(tokens.ratio()), cap)
    weight = jnp.where(too_far & outward, 0.0, weight)
    return weight * tokens.advantages * tokens.policy_logprobs


def kpop(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, kl_threshold: float = 0.1
) -> Array:
    """Drops the tokens whose binary divergence is too large, in either direction.

    Formula: w 1[max(D(pi_prox, pi_phi), D(pi_phi, pi_prox)) <= kl_threshold] min(r A, clip(r) A),
    where D is `binary_kl` of the token's probabilities.
    Source: KPop of the Ring team, as in AReaL, in place of IcePop's range of w. One threshold
    serves both directions.
    Verified: compared by reading AReaL's code and proposals for verl (#6800) and prime-rl (#3283),
    but not by running them. prime-rl adds a penalty. The threshold is not settled: prime-rl's
    proposal has 0.1 and calls it published, and AReaL's example has 2.
    Bias: the bias of `token_is`, and an additional bias from the dropped tokens.
    Variance: w has no bound, because a rare token keeps a large w at a small divergence.
    """
    behavior_logprobs, proximal_logprobs = tokens.behavior_logprobs, tokens.proximal_logprobs
    divergence = jnp.maximum(
        binary_kl(proximal_logprobs, behavior_logprobs),
        binary_kl(behavior_logprobs, proximal_logprobs),
    )
    weight = clamped_exp(tokens.proximal_log_weight())
    weight = jnp.where(divergence > kl_threshold, 0.0, weight)
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def m2po_areal(tokens: TokenBatch, *, second_moment: float = 0.04) -> Array:
    """Drops the tokens with the largest (log w)^2 until the mean (log w)^2 is below a bound.

    Formula: 1[token kept] rho A. The tokens with the smallest (log w)^2 of the batch are kept: as
    many as possible with a mean (log w)^2 below `second_moment`. Tokens with equal (log w)^2 are
    kept or dropped together.
    Source: M2PO, arXiv 2510.01161, as implemented by AReaL. `m2po_authors` is the authors' code.
    Verified: compared by reading AReaL's code, but not by running it. AReaL multiplies its own loss
    by the mask. With AReaL's decoupled weight and one optimizer step per batch, its gradient is the
    same as here.
    Bias and variance: as with `token_is` on the kept tokens. The mask depends on the batch.
    """
    weights = tokens.token_weights(tokens.mask)
    square = tokens.proximal_log_weight() ** 2
    ascending = jnp.where(weights > 0, square.ravel(), 0.0)
    order = jnp.argsort(ascending)
    ascending, weights = ascending[order], weights[order]
    cumulated_weight = jnp.cumsum(weights)
    below_bound = jnp.cumsum(weights * ascending) < second_moment * cumulated_weight
    # The kept tokens come first in the ascending order of squares. With more tokens the mean grows.
    # So the largest number of tokens with a mean below the bound is kept. The last kept square must
    # differ from the next one, because equal squares are kept or dropped together.
    largest = jnp.max(jnp.where(below_bound & _next_differs(ascending), ascending, -1.0))
    keep = jnp.where(square <= largest, 1.0, 0.0)
    return keep * tokens.ratio() * tokens.advantages


def _next_differs(ascending: Array) -> jax.Array:
    """Returns where a value of an ascending vector [n] differs from the next; True at the end."""
    return jnp.append(ascending[1:] > ascending[:-1], True)


def mu_grpo(
    tokens: TokenBatch,
    *,
    clip_low: float = 0.8,
    clip_high: float = 2.0,
    veto_low: float = 0.0,
    veto_high: float = 2.0,
) -> Array:
    """Clips with a wide range, and drops the tokens after an extreme ratio in bad responses.

    Formula: 0 where A < 0 and an earlier rho of the response is outside [veto_low, veto_high], else
    min(rho A, clip(rho) A). With A < 0, PPO's clip does not bound the objective of these tokens.
    Source: mu-GRPO, arXiv 2605.17570.
    Verified: second-hand. The following could not be verified:
      - the direction of the veto (veto_low = 0 disables the lower side);
      - the threshold of the veto;
      - the wide clip range;
      - whether the token with the extreme ratio is kept (here: it is kept).
    Bias and variance: as with `grpo_clip` with a wide range, with an additional bias from the
    dropped tokens.
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
    """Clips the log-ratio before exponentiation, and drops responses with extreme advantages.

    Formula: 0 where |A - mean(A)| > sigmas std(A), else min(rho' A, clip(rho') A) with rho' =
    exp(clip(log rho, log ratio_low, log ratio_high)). mean and std run over the batch's responses.
    Source: StableReinforce of R1-Reward, arXiv 2505.02835. The paper's consistency reward is not
    part of the loss. Another public system uses the name StableReinforce for a different rule.
    Verified: second-hand.
    Bias and variance: as with `grpo_clip`, with an additional bias from the dropped responses. The
    filter depends on the size of the advantages and not only on their sign. Therefore
    `bias.corrected` cannot compute the exact gradient of this correction.
    """
    log_ratio = jnp.clip(tokens.log_ratio(), jnp.log(ratio_low), jnp.log(ratio_high))
    weights = tokens.weights / jnp.maximum(
        jnp.sum(tokens.weights), jnp.finfo(tokens.weights.dtype).tiny
    )
    mean = jnp.sum(weights * tokens.advantages)
    std = jnp.sqrt(jnp.sum(weights * (tokens.advantages - mean) ** 2))
    keep = jnp.where(jnp.abs(tokens.advantages - mean) > sigmas * std, 0.0, 1.0)
    return keep * clipped_objective(clamped_exp(log_ratio), tokens.advantages, clip_low, clip_high)
