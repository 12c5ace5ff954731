"""Defines corrections that multiply each token by a weight, mostly an importance weight.

Each function returns the objective of each token, [..., R], which is maximized. `objective.tokens`
defines the symbols. clip(x) means clip(x, 1 - clip_low, 1 + clip_high).

The proximal policy is the policy at the start of the update. With one optimizer step per rollout
batch, the weights w = pi_prox / pi_phi equal rho = pi_theta / pi_phi, but have no gradient.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.objective.tokens import (
    LOG_RATIO_CLAMP,
    TokenBatch,
    clamped_exp,
    clipped_objective,
)
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


def opob(tokens: TokenBatch, *, cap: float = 8.0) -> Array:
    """Weights the score of each token by the truncated weight of the response, without a clip.

    Its own part is in the advantages, whose baseline minimizes the variance.

    Formula: sg(min(W, cap)) A log pi_theta with W = prod_t rho. A has the baseline
    b = sum_i W_i^2 n_i R_i / sum_i W_i^2 n_i of the group in place of the mean reward. n_i is the
    squared norm of the score of response i, with all parameters. If the sum of the weights is 0, b
    is the mean reward. See `advantages.optimal_baseline_weights`.
    Source: the off-policy optimal baseline (OPOB) of VCPO, arXiv 2602.17616. With the update rule
    `vcpo` it is the authors' whole method.
    Verified: compared by reading the authors' code and run scripts, but not by running them. They
    have this loss with cap = 8, the weights W in b without the cap, and advantages divided by std.
    Bias: the bias of `sequence_is`, that of the truncation, and another of order 1/G. The baseline
    depends on the response's own reward, weight and score.
    Variance: no b has a smaller sum of squared norms of a group's terms, if no W exceeds the cap
    and every response has the same token weight. With length normalization 'response' this is not
    so, as in the authors' scripts. In expectation over groups b may have more variance than the
    mean, because b is random itself.
    """
    weight = jnp.minimum(clamped_exp(tokens.response_sum(tokens.log_ratio())), cap)
    return jax.lax.stop_gradient(weight) * tokens.advantages * tokens.policy_logprobs


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


def vespo(
    tokens: TokenBatch,
    *,
    exponent_positive: float = 2.0,
    decay_positive: float = 3.0,
    exponent_negative: float = 3.0,
    decay_negative: float = 2.0,
) -> Array:
    """Weights each response by a smooth function of its importance weight, which has a maximum.

    Formula: sg(phi(W)) A log pi_theta with W = prod_t rho and phi(W) = W^k exp(l (1 - W)). Here k
    and l are `exponent_positive` and `decay_positive` if A >= 0, else the other two.
    Source: VESPO, arXiv 2602.10693, as in TRL, whose defaults are used.
    Verified: the gradient equals the gradient of TRL's code in float64. TRL divides by the number
    of all tokens of the batch. It replaces a weight of NaN by 0, and here it stays NaN.
    Bias: phi(1) is 1 with slope k - l, and the exact weight has slope 1. So with the defaults the
    weight is right to first order in W - 1 for A < 0, and not for A >= 0.
    Variance: bounded, because phi is at most e^(l - k) (k / l)^k, at W = k / l.
    """
    log_weight = tokens.response_sum(jax.lax.stop_gradient(tokens.log_ratio()))
    log_weight = jnp.clip(log_weight, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    positive = tokens.advantages >= 0
    exponent = jnp.where(positive, exponent_positive, exponent_negative)
    decay = jnp.where(positive, decay_positive, decay_negative)
    weight = jnp.exp(exponent * log_weight - decay * jnp.expm1(log_weight))
    return weight * tokens.advantages * tokens.policy_logprobs


def dro(tokens: TokenBatch, *, beta: float = 0.05) -> Array:
    """Treats stale tokens as if they were fresh, and adds a penalty on the squared log-ratio.

    Formula: A log pi_theta - (beta / 2) (log rho)^2.
    Source: DRO, as in verl and Tinker, whose example has beta = 0.05. The paper, arXiv 2405.19107,
    regresses rewards on log-ratios with a learned value. Here A is the advantage of the group.
    Verified: the gradient equals the gradient of verl's code in float64.
    Bias: the bias of `none`, and a pull towards the behavior policy, which does not depend on A.
    Variance: not bounded, because the slope of the penalty grows with log rho.
    """
    return none(tokens) - beta / 2 * tokens.log_ratio() ** 2
