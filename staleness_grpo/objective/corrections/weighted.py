"""Defines corrections that multiply each token by an exact or truncated importance weight.

Each function returns the objective of each token, [..., R], which is maximized. `objective.tokens`
defines the symbols. clip(x) means clip(x, 1 - clip_low, 1 + clip_high).

The proximal policy is the policy at the start of the update. With one optimizer step per rollout
batch, the weights w = pi_prox / pi_phi equal rho = pi_theta / pi_phi, but have no gradient.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def none(tokens: TokenBatch) -> Array:
    """Treats stale tokens as if they were fresh.

    Formula: A log pi_theta.
    Source: several trainers do this by default, because they recompute the old log-probabilities
    with the current learner.
    Verified: this is the standard policy gradient.
    Bias: of first order in the drift.
    Variance: lower than with any other correction here, because every weight is 1.
    """
    return tokens.advantages * tokens.policy_logprobs


def token_is(tokens: TokenBatch) -> Array:
    """Weights each token by its own ratio.

    Formula: rho A.
    Source: standard importance sampling of single tokens.
    Verified: this is a standard estimator.
    Bias: the ratio of the prefix is left out.
    Variance: grows with the ratio of a single token.
    """
    return tokens.ratio() * tokens.advantages


def sequence_is(tokens: TokenBatch) -> Array:
    """Weights every token by the exact importance weight of its response.

    Formula: sg(prod_t rho) pi_theta / sg(pi_theta) A. The product is clamped to exp(+-20).
    Source: standard importance sampling of whole responses.
    Verified: this is a standard estimator. tests/bias/test_corrected.py tests its exact bias.
    Bias: none without std and with constant length normalization. Otherwise the bias comes from
    group statistics that depend on phi, and with 'tokens' also from the divisor.
    Variance: grows exponentially with the length of the response.
    """
    weight = clamped_exp(tokens.response_sum(tokens.log_ratio()))
    return jax.lax.stop_gradient(weight) * tokens.score() * tokens.advantages


def token_tis(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0) -> Array:
    """Weights GRPO's clipped objective of each token by a truncated importance weight.

    Formula: min(w, cap) min(r A, clip(r) A).
    Source: truncated importance sampling, as in verl's rollout correction and TRL. Published caps
    are 1.5 to 5.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: the bias of `token_is`, and an additional bias from the truncation.
    Variance: bounded, because no weight exceeds the cap.
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
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: equals the bias of `sequence_is` if no weight exceeds the cap. The truncation reduces only
    the weights of responses that are more probable under theta than under phi.
    Variance: bounded, because no weight exceeds the cap.
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
    Source: the sequence weight in AReaL's code.
    Verified: compared by reading AReaL's code, but not by running it. AReaL's default cap could not
    be verified.
    Bias: the geometric mean is not an importance weight of the response.
    Variance: does not grow with the length of the response.
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
    Bias and variance: with one optimizer step per batch, the gradient equals the gradient of
    `token_tis`. With more steps, `token_tis` also clips, but `aipo` does not.
    """
    return (
        jax.lax.stop_gradient(jnp.minimum(tokens.ratio(), cap))
        * tokens.advantages
        * tokens.policy_logprobs
    )


def _tapered(tokens: TokenBatch, log_ratio: Array) -> Array:
    """Returns alpha A log pi_theta, with alpha = 1 if A >= 0, else min(exp(log_ratio), 1)."""
    taper = jnp.where(tokens.advantages >= 0, 1.0, jnp.minimum(clamped_exp(log_ratio), 1.0))
    return jax.lax.stop_gradient(taper) * tokens.advantages * tokens.policy_logprobs


def topr(tokens: TokenBatch) -> Array:
    """Imitates good responses with weight 1, and reduces the weight of bad, less probable ones.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(prod_t rho, 1).
    Source: TOPR, arXiv 2503.14286. The paper separates good from bad responses by the sign of the
    reward. Here the sign of the advantage is used, which is centered.
    Verified: second-hand.
    Bias: favors the imitation of good responses.
    Variance: bounded, because no weight exceeds 1.
    """
    return _tapered(tokens, tokens.response_sum(tokens.log_ratio()))


def topr_token(tokens: TokenBatch) -> Array:
    """Applies the weights of `topr` with the ratio of each token.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(rho, 1).
    Source: a variant in the ROLL framework, which uses the sign of the reward.
    Verified: second-hand.
    Bias and variance: see `topr`. The ratio of the prefix is left out.
    """
    return _tapered(tokens, tokens.log_ratio())


def topr_geometric(tokens: TokenBatch) -> Array:
    """Applies the weights of `topr` with the geometric mean of a response's ratios.

    Formula: sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(exp(mean_t log rho), 1).
    Source: a length-normalized variant that was proposed for verl (#6986).
    Verified: second-hand.
    Bias and variance: see `topr`. The geometric mean is not an importance weight.
    """
    return _tapered(tokens, tokens.response_mean(tokens.log_ratio()))
