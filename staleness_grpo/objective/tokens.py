"""What a correction sees of a batch, and the ratios and weighted statistics that corrections are made of."""

import dataclasses

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array

LOG_RATIO_CLAMP = 20.0  # exp(20) = 5e8: far outside any clip range, far inside float32


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """The arguments of every correction. Log-probabilities are 0 where masked, so no NaN is left in them.

    Only `policy_logprobs` carries a gradient. With one optimizer step per rollout batch the proximal policy, the one
    at the start of the update, is the policy itself: its log-probabilities are then equal, without gradient.
    """

    policy_logprobs: Array  # [..., R] float, log pi_theta of the response tokens
    behavior_logprobs: Array  # [..., R] float, log pi_phi as recorded by the sampler
    proximal_logprobs: Array  # [..., R] float, log pi_prox
    advantages: Array  # [..., 1] float
    mask: Array  # [..., R] bool, True on the response's tokens
    weights: Array  # [..., 1] float, copies of each response: 1 in training, probabilities in an exact expectation

    def log_ratio(self) -> jax.Array:
        """log pi_theta - log pi_phi, unclamped; its gradient is that of log pi_theta."""
        return self.policy_logprobs - self.behavior_logprobs

    def ratio(self) -> jax.Array:
        """rho = pi_theta / pi_phi."""
        return clamped_exp(self.log_ratio())

    def proximal_ratio(self) -> jax.Array:
        """r = pi_theta / pi_prox."""
        return clamped_exp(self.policy_logprobs - self.proximal_logprobs)

    def proximal_log_weight(self) -> jax.Array:
        """log w = log pi_prox - log pi_phi, unclamped; no gradient."""
        return self.proximal_logprobs - self.behavior_logprobs

    def score(self) -> jax.Array:
        """pi_theta / stop_gradient(pi_theta): 1, with the gradient of log pi_theta. Carries detached weights."""
        return jnp.exp(self.policy_logprobs - jax.lax.stop_gradient(self.policy_logprobs))

    def response_sum(self, values: Array) -> jax.Array:
        """Sum over the tokens of each response, [..., 1]."""
        return jnp.sum(jnp.where(self.mask, values, 0.0), axis=-1, keepdims=True)

    def response_mean(self, values: Array) -> jax.Array:
        """Mean over the tokens of each response, [..., 1]; 0 for an empty one."""
        return self.response_sum(values) / jnp.maximum(jnp.sum(self.mask, axis=-1, keepdims=True), 1)

    def token_weights(self, among: Array) -> jax.Array:
        """The weight of each token among the unmasked ones where `among` holds, flattened."""
        return jnp.where(self.mask & among, self.weights, 0.0).ravel()


def clamped_exp(log_ratio: Array) -> jax.Array:
    """exp with the argument clamped to +-20; beyond that, no gradient."""
    return jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))


def clipped_objective(ratio: Array, advantages: Array, clip_low: Array, clip_high: Array) -> jax.Array:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), elementwise (PPO, arXiv 1707.06347, equation 7)."""
    return jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)


def weighted_quantile(values: Array, weights: Array, level: float) -> jax.Array:
    """The smallest value with at least `level` of the weight at or below it; +inf without weight.

    With equal weights this is the nearest-rank quantile, an element of the sample: where an implementation
    interpolates between two elements, it differs by less than the gap between them.
    """
    values = jnp.where(weights > 0, values, jnp.inf)
    order = jnp.argsort(values)
    cumulated = jnp.cumsum(weights[order])
    # Slightly less than the level: a sum that should be equal may be rounded down.
    rank = jnp.sum(cumulated < level * (1 - 1e-6) * cumulated[-1])
    return values[order][jnp.minimum(rank, values.size - 1)]
