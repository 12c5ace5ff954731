"""Corrections that weight each token's score by an importance weight, exact, truncated or tapered.

Each returns the per-token objective, to be maximised. The proximal policy is that at the start of the update; with
one optimizer step per rollout batch the weights w = pi_prox/pi_phi are rho = pi_theta/pi_phi, held constant.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import TokenBatch, clamped_exp, clipped_objective
from staleness_grpo.types import Array


def none(tokens: TokenBatch) -> Array:
    """A log pi_theta: stale tokens as if they were fresh.

    What recomputing the old log-probabilities with the current learner amounts to. Biased at first order in the
    drift; the least variance of all, as every weight is 1.
    """
    return tokens.advantages * tokens.policy_logprobs


def token_is(tokens: TokenBatch) -> Array:
    """rho A, per token. Biased: the ratio of the prefix is left out. Its variance grows with one token's ratio."""
    return tokens.ratio() * tokens.advantages


def sequence_is(tokens: TokenBatch) -> Array:
    """(prod_t rho) A on each token's score: sg(prod_t rho) pi_theta / sg(pi_theta) A.

    The exact importance weight of the response. What bias is left comes from group statistics that depend on phi
    (and, with length normalization 'tokens', from the divisor): none without std and with constant length
    normalization. Its variance grows exponentially in the length. Products are clamped to exp(+-20).
    """
    weight = clamped_exp(tokens.response_sum(tokens.log_ratio()))
    return jax.lax.stop_gradient(weight) * tokens.score() * tokens.advantages


def token_tis(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0) -> Array:
    """min(w, cap) min(r A, clip(r) A), per token   (truncated importance sampling; verl's rollout correction, TRL).

    Published caps: 1.5 to 5. Bias of `token_is` plus that of the truncation, which bounds the variance.
    """
    weight = jnp.minimum(clamped_exp(tokens.proximal_log_weight()), cap)
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def sequence_tis(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0) -> Array:
    """min(prod_t w, cap) min(r A, clip(r) A)   (verl's rollout correction, TRL; published caps 2 to 10).

    Below the cap as unbiased as `sequence_is`; truncation only shortens responses that theta likes more than phi.
    """
    weight = jnp.minimum(clamped_exp(tokens.response_sum(tokens.proximal_log_weight())), cap)
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def geometric_tis(tokens: TokenBatch, *, clip_low: float, clip_high: float, cap: float = 2.0) -> Array:
    """min(exp(mean_t log w), cap) min(r A, clip(r) A): AReaL's weight of a sequence, the geometric mean.

    No importance weight of the response, so biased; its variance does not grow with the length. AReaL's default
    for the cap could not be verified.
    """
    weight = jnp.minimum(clamped_exp(tokens.response_mean(tokens.proximal_log_weight())), cap)
    return weight * clipped_objective(tokens.proximal_ratio(), tokens.advantages, clip_low, clip_high)


def aipo(tokens: TokenBatch, *, cap: float = 2.0) -> Array:
    """sg(min(rho, cap)) A log pi_theta   (LlamaRL, arXiv 2505.24034, second-hand; published caps 2 to 10).

    The gradient of `token_tis` with one optimizer step per batch, without a clip for the steps that follow.
    """
    return jax.lax.stop_gradient(jnp.minimum(tokens.ratio(), cap)) * tokens.advantages * tokens.policy_logprobs


def _tapered(tokens: TokenBatch, log_ratio: Array) -> Array:
    taper = jnp.where(tokens.advantages >= 0, 1.0, jnp.minimum(clamped_exp(log_ratio), 1.0))
    return jax.lax.stop_gradient(taper) * tokens.advantages * tokens.policy_logprobs


def topr(tokens: TokenBatch) -> Array:
    """sg(alpha) A log pi_theta; alpha = 1 if A >= 0, else min(prod_t rho, 1)   (TOPR, arXiv 2503.14286, second-hand).

    Good responses are imitated without a weight, bad ones fade as theta leaves them: bounded variance, and a bias
    that favors imitation. The paper splits by the sign of its reward; here that is the advantage, which is centred.
    """
    return _tapered(tokens, tokens.response_sum(tokens.log_ratio()))


def topr_token(tokens: TokenBatch) -> Array:
    """TOPR with alpha = min(rho, 1) token by token, the variant of the ROLL framework (which splits by the reward)."""
    return _tapered(tokens, tokens.log_ratio())


def topr_geometric(tokens: TokenBatch) -> Array:
    """TOPR with alpha = min(exp(mean_t log rho), 1), the length-normalised variant proposed for verl (#6986)."""
    return _tapered(tokens, tokens.response_mean(tokens.log_ratio()))
