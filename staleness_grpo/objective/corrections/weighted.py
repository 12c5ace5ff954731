"""Defines corrections that weight each token by an importance weight: exact or truncated.

Each returns the per-token objective [..., R], to be maximized. The symbols are those of
`objective.tokens`, and clip(x) stands for clip(x, 1 - clip_low, 1 + clip_high).

The proximal policy is the policy at the start of the update. With one optimizer step per rollout
batch the weights w = pi_prox / pi_phi are rho = pi_theta / pi_phi, held constant.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def none(tokens: TokenBatch) -> Array:
    """Treats stale tokens as if they were fresh.

    Formula: A log pi_theta.
    Source: the effect of recomputing the old log-probabilities with the current learner, as several
    trainers do by default.
    Verified: standard policy gradient.
    Bias: first order in the drift.
    Variance: the least of all, as every weight is 1.
    """
    return tokens.advantages * tokens.policy_logprobs


def token_is(tokens: TokenBatch) -> Array:
    """Weights each token by its own ratio.

    Formula: rho A.
    Source: standard importance sampling, token by token.
    Verified: standard.
    Bias: the ratio of the prefix is left out.
    Variance: grows with one token's ratio.
    """
    return tokens.ratio() * tokens.advantages


def sequence_is(tokens: TokenBatch) -> Array:
    """Weights every token by the exact importance weight of its response.

    Formula: sg(prod_t rho) pi_theta / sg(pi_theta) A. The product is clamped to exp(+-20).
    Source: standard importance sampling of whole responses.
    Verified: standard; its exact bias is tested in tests/bias/test_corrected.py.
    Bias: none without std and with constant length normalization. Else it comes from group
    statistics that depend on phi, and with length normalization 'tokens' from the divisor.
    Variance: grows exponentially in the length.
    """
    weight = clamped_exp(tokens.response_sum(tokens.log_ratio()))
    return jax.lax.stop_gradient(weight) * tokens.score() * tokens.advantages


def token_tis(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0) -> Array:
    """Weights GRPO's clipped objective of each token by a truncated importance weight.

    Formula: min(w, cap) min(r A, clip(r) A).
    Source: truncated importance sampling, as in verl's rollout correction and TRL. Published caps
    are 1.5 to 5.
    Verified: the gradient equals that of verl's code in float64.
    Bias: that of `token_is`, and that of the truncation.
    Variance: the cap bounds the weight.
    """
    weight = jnp.minimum(clamped_exp(tokens.proximal_log_weight()), cap)
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def sequence_tis(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0
) -> Array:
    """Weights GRPO's clipped objective by the truncated importance weight of the response.

    Formula: min(prod_t w, cap) min(r A, clip(r) A).
    Source: truncated importance sampling, as in verl's rollout correction and TRL. Published caps
    are 2 to 10.
    Verified: the gradient equals that of verl's code in float64.
    Bias: below the cap that of `sequence_is`. Truncation only shortens the weight of responses that
    theta likes more than phi does.
    Variance: the cap bounds the weight.
    """
    weight = jnp.minimum(clamped_exp(tokens.response_sum(tokens.proximal_log_weight())), cap)
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def geometric_tis(
    tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0
) -> Array:
    """Weights GRPO's clipped objective by the truncated geometric mean of a response's weights.

    Formula: min(exp(mean_t log w), cap) min(r A, clip(r) A).
    Source: AReaL's weight of a sequence.
    Verified: read in AReaL's code; not run against it. AReaL's default for the cap could not be
    verified.
    Bias: the geometric mean is no importance weight of the response.
    Variance: does not grow with the length.
    """
    weight = jnp.minimum(clamped_exp(tokens.response_mean(tokens.proximal_log_weight())), cap)
    return weight * clipped_objective(
        tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high
    )


def aipo(tokens: TokenBatch, *, cap: float = 2.0) -> Array:
    """Weights the score of each token by its truncated ratio, without a clip.

    Formula: sg(min(rho, cap)) A log pi_theta.
    Source: AIPO of LlamaRL, arXiv 2505.24034. Published caps are 2 to 10.
    Verified: second-hand.
    Bias and variance: with one optimizer step per batch the gradient is that of `token_tis`. No
    clip acts in the steps that follow.
    """
    return (
        jax.lax.stop_gradient(jnp.minimum(tokens.ratio(), cap))
        * tokens.advantages
        * tokens.policy_logprobs
    )


def _tapered(tokens: TokenBatch, log_ratio: Array) -> Array:
    """Weights A log pi_theta by 1 where A >= 0, else by min(exp(log_ratio), 1)."""
    taper = jnp.where(tokens.advantages >= 0, 1.0, jnp.minimum(clamped_exp(log_ratio), 1.0))
    return jax.lax.stop_gradient(taper) * tokens.advantages * tokens.policy_logprobs


def topr(tokens: TokenBatch) -> Array:
    """Imitates good responses without a weight and lets bad ones fade as the policy leaves them.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(prod_t rho, 1).
    Source: TOPR, arXiv 2503.14286. The paper splits by the sign of its reward. Here that is the
    advantage, which is centered.
    Verified: second-hand.
    Bias: favors imitation.
    Variance: bounded, as no weight exceeds 1.
    """
    return _tapered(tokens, tokens.response_sum(tokens.log_ratio()))


def topr_token(tokens: TokenBatch) -> Array:
    """Applies TOPR's taper token by token.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(rho, 1).
    Source: the variant of the ROLL framework, which splits by the reward.
    Verified: second-hand.
    Bias and variance: see `topr`. The ratio of the prefix is left out.
    """
    return _tapered(tokens, tokens.log_ratio())


def topr_geometric(tokens: TokenBatch) -> Array:
    """Applies TOPR's taper with the geometric mean of a response's ratios.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(exp(mean_t log rho), 1).
    Source: the length-normalized variant proposed for verl (#6986).
    Verified: second-hand.
    Bias and variance: see `topr`. The geometric mean is no importance weight.
    """
    return _tapered(tokens, tokens.response_mean(tokens.log_ratio()))
