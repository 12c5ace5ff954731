"""Defines TokenBatch, the input of every correction, with its ratios and statistics.

The corrections use these symbols:

    pi_theta    the learner's policy
    pi_phi      the behavior policy
    pi_prox     the proximal policy: the learner's policy at the start of the update
    rho         pi_theta / pi_phi of one token
    r           pi_theta / pi_prox of one token
    w           pi_prox / pi_phi of one token
    A           the advantage
    sg          stop_gradient
    prod_t      the product over the tokens of a response
    mean_t      the mean over the tokens of a response
"""

import dataclasses

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array

LOG_RATIO_CLAMP = 20.0  # exp(20) = 5e8 is outside any clip range, but float32 represents it


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Holds the inputs of every correction.

    Log-probabilities are 0 where masked, so that they contain no NaN. Only `policy_logprobs` has a
    gradient. With one optimizer step per rollout batch, the proximal policy is the policy itself.
    Then `proximal_logprobs` has the values of `policy_logprobs`, but no gradient.
    """

    policy_logprobs: Array  # [..., R] float, log pi_theta of the response tokens
    behavior_logprobs: Array  # [..., R] float, log pi_phi as recorded by the sampler
    proximal_logprobs: Array  # [..., R] float, log pi_prox
    advantages: Array  # [..., 1] float
    mask: Array  # [..., R] bool, True on the response's tokens
    # [..., 1] float, the weight of each response: 1 in training, and its probability in an exact
    # expectation.
    weights: Array

    def log_ratio(self) -> Array:
        """Returns log rho without a clamp. Its gradient is the gradient of log pi_theta."""
        return self.policy_logprobs - self.behavior_logprobs

    def ratio(self) -> jax.Array:
        """Returns rho = pi_theta / pi_phi, clamped by `clamped_exp`."""
        return clamped_exp(self.log_ratio())

    def proximal_ratio(self) -> jax.Array:
        """Returns r = pi_theta / pi_prox, clamped by `clamped_exp`."""
        return clamped_exp(self.policy_logprobs - self.proximal_logprobs)

    def proximal_log_weight(self) -> Array:
        """Returns log w = log pi_prox - log pi_phi, without a clamp and without a gradient."""
        return self.proximal_logprobs - self.behavior_logprobs

    def score(self) -> jax.Array:
        """Returns pi_theta / sg(pi_theta), which is 1 and has the gradient of log pi_theta.

        A constant weight times this factor has the value of the weight, and as gradient the weight
        times the token's score.
        """
        return jnp.exp(self.policy_logprobs - jax.lax.stop_gradient(self.policy_logprobs))

    def response_sum(self, values: Array) -> jax.Array:
        """Returns the sum of values [..., R] over the tokens of each response, [..., 1]."""
        return jnp.sum(jnp.where(self.mask, values, 0.0), axis=-1, keepdims=True)

    def response_mean(self, values: Array) -> jax.Array:
        """Returns the mean of values [..., R] over each response, [..., 1]; 0 if it is empty."""
        return self.response_sum(values) / jnp.maximum(
            jnp.sum(self.mask, axis=-1, keepdims=True), 1
        )

    def token_weights(self, among: Array) -> jax.Array:
        """Returns the weight of each unmasked token in `among`, 0 for other tokens; flattened."""
        return jnp.where(self.mask & among, self.weights, 0.0).ravel()


def clamped_exp(log_ratio: Array) -> jax.Array:
    """Returns exp of log_ratio clamped to +-LOG_RATIO_CLAMP.

    Where the clamp acts, the gradient is 0.
    """
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
    """Returns the smallest value v such that values <= v have at least `level` of the weight.

    The result is +inf if no value has weight. With equal weights, the result is the nearest-rank
    quantile, which is one of the values. A quantile that interpolates between two neighboring
    values differs from this result by less than the gap between the two values.

    Args:
      values: [n].
      weights: [n], >= 0.
      level: fraction of the total weight, in (0, 1].
    """
    values = jnp.where(weights > 0, values, jnp.inf)
    order = jnp.argsort(values)
    cumulated = jnp.cumsum(weights[order])
    # The level is lowered a little, because a sum that should equal the level may be rounded down.
    rank = jnp.sum(cumulated < level * (1 - 1e-6) * cumulated[-1])
    return values[order][jnp.minimum(rank, values.size - 1)]
