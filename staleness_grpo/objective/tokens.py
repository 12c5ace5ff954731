"""Holds the batch that a correction reads, and computes its ratios and statistics.

Symbols in this package:

    pi_theta    the learner's policy
    pi_phi      the behavior policy
    pi_prox     the proximal policy, which is the learner's at the start of the update
    rho         pi_theta / pi_phi of one token
    r           pi_theta / pi_prox of one token
    w           pi_prox / pi_phi of one token
    A           the advantage
    sg          stop_gradient
    prod_t, mean_t   run over the tokens of a response
"""

import dataclasses

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array

LOG_RATIO_CLAMP = 20.0  # exp(20) = 5e8: far outside any clip range, far inside float32


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Holds the arguments of every correction.

    Log-probabilities are 0 where masked, so that no NaN is left in them. Only `policy_logprobs`
    carries a gradient. With one optimizer step per rollout batch the proximal policy is the policy
    itself. Its log-probabilities are then equal to the policy's, without a gradient.
    """

    policy_logprobs: Array  # [..., R] float, log pi_theta of the response tokens
    behavior_logprobs: Array  # [..., R] float, log pi_phi as recorded by the sampler
    proximal_logprobs: Array  # [..., R] float, log pi_prox
    advantages: Array  # [..., 1] float
    mask: Array  # [..., R] bool, True on the response's tokens
    # [..., 1] float, how much a response counts: 1 in training, its probability in an exact
    # expectation.
    weights: Array

    def log_ratio(self) -> Array:
        """Returns log rho, unclamped; its gradient is that of log pi_theta."""
        return self.policy_logprobs - self.behavior_logprobs

    def ratio(self) -> jax.Array:
        """Returns rho = pi_theta / pi_phi."""
        return clamped_exp(self.log_ratio())

    def proximal_ratio(self) -> jax.Array:
        """Returns r = pi_theta / pi_prox."""
        return clamped_exp(self.policy_logprobs - self.proximal_logprobs)

    def proximal_log_weight(self) -> Array:
        """Returns log w = log pi_prox - log pi_phi, unclamped; it has no gradient."""
        return self.proximal_logprobs - self.behavior_logprobs

    def score(self) -> jax.Array:
        """Returns pi_theta / sg(pi_theta), which is 1 and has the gradient of log pi_theta.

        Multiplied by a detached weight, it gives that weight to the token's score.
        """
        return jnp.exp(self.policy_logprobs - jax.lax.stop_gradient(self.policy_logprobs))

    def response_sum(self, values: Array) -> jax.Array:
        """Sums values [..., R] over the tokens of each response, [..., 1]."""
        return jnp.sum(jnp.where(self.mask, values, 0.0), axis=-1, keepdims=True)

    def response_mean(self, values: Array) -> jax.Array:
        """Averages values [..., R] over each response's tokens, [..., 1]; 0 for an empty one."""
        return self.response_sum(values) / jnp.maximum(
            jnp.sum(self.mask, axis=-1, keepdims=True), 1
        )

    def token_weights(self, among: Array) -> jax.Array:
        """Returns the weight of each unmasked token where `among` holds, else 0, flattened."""
        return jnp.where(self.mask & among, self.weights, 0.0).ravel()


def clamped_exp(log_ratio: Array) -> jax.Array:
    """Returns exp of the argument clamped to +-LOG_RATIO_CLAMP; beyond that it has no gradient."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))


def clipped_objective(
    ratio: Array, advantages: Array, clip_low: Array | float, clip_high: Array | float
) -> jax.Array:
    """Returns PPO's clipped objective of each token.

    min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)   (PPO, arXiv 1707.06347, equation 7).
    """
    return jnp.minimum(
        ratio * advantages, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    )


def weighted_quantile(values: Array, weights: Array, level: float) -> jax.Array:
    """Returns the smallest value with at least `level` of the weight at or below it.

    It is +inf where no value has weight. With equal weights this is the nearest-rank quantile, an
    element of the sample. An implementation that interpolates between two elements differs from it
    by less than the gap between them.

    Args:
      values: [n].
      weights: [n], >= 0.
      level: share of the weight, in (0, 1].
    """
    values = jnp.where(weights > 0, values, jnp.inf)
    order = jnp.argsort(values)
    cumulated = jnp.cumsum(weights[order])
    # Slightly less than the level, because a sum that should be equal to it may be rounded down.
    rank = jnp.sum(cumulated < level * (1 - 1e-6) * cumulated[-1])
    return values[order][jnp.minimum(rank, values.size - 1)]
