"""Computes the surrogate L(theta, phi) of a policy theta, given its behavior policy phi."""

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from staleness_grpo.errors import require, require_choice, require_positive
from staleness_grpo.objective.corrections.clipped import grpo_clip
from staleness_grpo.objective.tokens import TokenBatch
from staleness_grpo.types import Array

# A correction with fixed parameters. Maps a batch to the objective [..., R], which is maximized.
TokenObjective = Callable[[TokenBatch], Array]

LENGTH_NORMALIZATIONS = ("response", "constant", "tokens")
RATIO_QUANTILES = (0.01, 0.5, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class SurrogateConfig:
    """Holds the settings of the surrogate. They are hashable, so they can be static under jit.

    Raises:
      FieldError: a field has a value that is out of range or not among its choices.
    """

    clip_low: float = 0.2  # ratios below 1 - clip_low are clipped
    clip_high: float = 0.2  # ratios above 1 + clip_high are clipped
    length_normalization: str = "response"  # one of LENGTH_NORMALIZATIONS
    normalize_std: bool = True  # divide advantages by the group's standard deviation
    std_epsilon: float = 1e-4  # > 0, added to the standard deviation before the division

    def __post_init__(self):
        require_positive(vars(self), ("clip_low", "clip_high", "std_epsilon"))
        hint = "ratios are >= 0: give a number <= 1"
        require(self.clip_low <= 1, "clip_low", hint, self.clip_low)
        require_choice(vars(self), "length_normalization", LENGTH_NORMALIZATIONS)


def token_weights(mask_BxR: Array, length_normalization: str) -> jax.Array:
    """Returns the weight of each token in the batch mean, [B, R]; 0 where masked.

    The weight depends on the length normalization:

      'response': 1/(B |y|), so all responses have the same weight (GRPO).
      'constant': 1/(B R), with R the padded length (Dr. GRPO, arXiv 2503.20783).
      'tokens': 1/sum_b |y_b|, so all tokens have the same weight (DAPO, arXiv 2503.14476).

    B includes empty responses, which have no weight themselves.

    Raises:
      ValueError: the length normalization is unknown.
    """
    mask_BxR = jnp.asarray(mask_BxR)
    length_Bx1 = jnp.sum(mask_BxR, axis=-1, keepdims=True)
    num_responses = length_Bx1.size
    if length_normalization == "response":
        weight: jax.Array | float = 1.0 / (num_responses * jnp.maximum(length_Bx1, 1))
    elif length_normalization == "constant":
        weight = 1.0 / mask_BxR.size
    elif length_normalization == "tokens":
        weight = 1.0 / jnp.maximum(jnp.sum(length_Bx1), 1)
    else:
        choices = ", ".join(LENGTH_NORMALIZATIONS)
        raise ValueError(f"length_normalization={length_normalization}: choose one of {choices}")
    return jnp.where(mask_BxR, weight, 0.0)


def grpo_surrogate(
    policy_logprobs: Array,
    behavior_logprobs: Array,
    advantages: Array,
    mask: Array,
    config: SurrogateConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss, which is minus the GRPO surrogate, and diagnostics of the ratio.

    L = sum_{b,t} w_bt min(rho_bt A_b, clip(rho_bt, 1 - clip_low, 1 + clip_high) A_b)

    Here rho = pi_theta / pi_phi, and w are the token weights of `config.length_normalization`. The
    gradient of L in theta is the surrogate gradient H(theta, phi) (arXiv 2607.01083).

    The gradient of a batch estimates the population gradient H(theta, phi). The estimate is
    unbiased with 'response' and 'constant'. With 'tokens' it is a ratio of sums with bias O(1/B).
    This project measures the bias of the gradient as an estimate of H(theta, theta).

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi as recorded by the sampler. Must not be None.
      advantages: [...] float, one for each response.
      mask: [..., R] bool, True on the response's tokens.
      config: its clip range and length normalization are used.

    Returns:
      (loss, diagnostics): a scalar, and the scalars of `ratio_diagnostics`.

    Raises:
      ValueError: `behavior_logprobs` is None. The policy is never taken as the behavior policy.
      AssertionError: the shapes disagree.
    """
    clip = functools.partial(grpo_clip, clip_low=config.clip_low, clip_high=config.clip_high)
    return corrected_surrogate(
        policy_logprobs,
        behavior_logprobs,
        policy_logprobs,
        advantages,
        mask,
        config.length_normalization,
        clip,
    )


def corrected_surrogate(
    policy_logprobs: Array,
    behavior_logprobs: Array,
    proximal_logprobs: Array,
    advantages: Array,
    mask: Array,
    length_normalization: str,
    token_objective: TokenObjective,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of a correction, which is minus its surrogate, and diagnostics of the ratio.

    The surrogate is sum_{b,t} w_bt f_bt, with f the token objective and w the token weights.

    Args:
      policy_logprobs: [..., R] float, log pi_theta of the response tokens.
      behavior_logprobs: [..., R] float, log pi_phi as recorded by the sampler. Must not be None.
      proximal_logprobs: [..., R] float, log-probabilities at the start of the update. With one
        optimizer step per rollout batch, pass `policy_logprobs` again. They get no gradient here.
      advantages: [...] float, one for each response.
      mask: [..., R] bool, True on the response's tokens.
      length_normalization: one of LENGTH_NORMALIZATIONS, for the token weights.
      token_objective: a correction with fixed parameters; see `corrections.registry.bind`.

    Returns:
      (loss, diagnostics): a scalar, and the scalars of `ratio_diagnostics`.

    Raises:
      ValueError: `behavior_logprobs` is None. The policy is never taken as the behavior policy.
      AssertionError: the shapes disagree, or the token objective has not the mask's shape.
    """
    if behavior_logprobs is None:
        raise ValueError(
            "behavior_logprobs is None: pass the log-probabilities that the sampler recorded. "
            "The surrogate never assumes that rollouts are on-policy."
        )
    chex.assert_equal_shape([policy_logprobs, behavior_logprobs, proximal_logprobs, mask])
    chex.assert_shape(advantages, policy_logprobs.shape[:-1])
    # Masked places are set to 0 before anything is computed. So a NaN in a masked place reaches
    # neither the value nor the gradient.
    policy_logprobs, behavior_logprobs, proximal_logprobs = (
        jnp.where(mask, logprobs, 0.0)
        for logprobs in (policy_logprobs, behavior_logprobs, proximal_logprobs)
    )
    advantages = jax.lax.stop_gradient(advantages)[..., None]
    batch = TokenBatch(
        policy_logprobs=policy_logprobs,
        behavior_logprobs=jax.lax.stop_gradient(behavior_logprobs),
        proximal_logprobs=jax.lax.stop_gradient(proximal_logprobs),
        advantages=advantages,
        mask=jnp.asarray(mask),
        weights=jnp.ones_like(advantages),
    )
    objective = token_objective(batch)
    chex.assert_equal_shape([objective, mask])  # a sum of another shape would pass without a word
    loss = -jnp.sum(token_weights(mask, length_normalization) * objective)
    constant = dataclasses.replace(batch, policy_logprobs=jax.lax.stop_gradient(policy_logprobs))
    cut = (token_slopes(constant, token_objective) == 0) & (advantages != 0)
    return loss, ratio_diagnostics(batch.log_ratio(), advantages, mask, cut)


def token_slopes(batch: TokenBatch, token_objective: TokenObjective) -> jax.Array:
    """Returns the derivative of the summed token objective in each log pi_theta, [..., R].

    The sum has no length normalization. Masked tokens have slope 0.
    """

    def total(policy_logprobs: Array) -> jax.Array:
        values = token_objective(dataclasses.replace(batch, policy_logprobs=policy_logprobs))
        return jnp.sum(jnp.where(batch.mask, values, 0.0))

    return jax.grad(total)(batch.policy_logprobs)


def ratio_diagnostics(
    raw_log_ratio: Array, advantages: Array, mask: Array, cut: Array
) -> dict[str, jax.Array]:
    """Returns statistics of the ratio over the unmasked tokens. The ratio is not clamped.

    If all tokens are masked, ess is 1 and all other statistics are 0.

      ratio_mean: mean of rho.
      ratio_q01, ratio_q50, ratio_q99, ratio_max: nearest-rank quantiles of rho.
      clip_fraction: fraction of the tokens that are in `cut`.
      clip_fraction_positive, clip_fraction_negative: the same fraction among the tokens with A > 0
        and among the tokens with A < 0.
      approx_kl: mean of rho - 1 - log rho, an unbiased estimate of KL(phi || theta) whose terms are
        >= 0.
      ess: effective sample size (sum rho)^2 / (n sum rho^2), in (0, 1].
      log_ratio_second_moment: mean of (log rho)^2.

    Args:
      raw_log_ratio: [..., R] float, log rho without a clamp.
      advantages: [..., 1] float.
      mask: [..., R] bool, True on the response's tokens.
      cut: [..., R] bool, True on tokens whose gradient the correction removes, for example by a
        clip.
    """
    log_ratio = jax.lax.stop_gradient(raw_log_ratio)
    active = jnp.asarray(mask)
    count = jnp.sum(active)
    at_least_one = jnp.maximum(count, 1)

    def mean(values: Array) -> jax.Array:
        return jnp.sum(jnp.where(active, values, 0.0)) / at_least_one

    def fraction(event: Array, among: Array) -> jax.Array:
        return jnp.sum(event & among) / jnp.maximum(jnp.sum(among), 1)

    positive = active & (advantages > 0)
    negative = active & (advantages < 0)

    # Computed in log space, so that a token with log-ratio 50 gives a small ess and no overflow.
    log_weights = jnp.where(active, log_ratio, -jnp.inf)
    log_ess = (
        2 * jax.nn.logsumexp(log_weights)
        - jax.nn.logsumexp(2 * log_weights)
        - jnp.log(at_least_one)
    )
    ess = jnp.where(count > 0, jnp.exp(jnp.where(count > 0, log_ess, 0.0)), 1.0)

    ordered = jnp.sort(jnp.where(active, log_ratio, jnp.inf).ravel())
    ranks = [
        jnp.clip(jnp.ceil(level * count).astype(int) - 1, 0, ordered.size - 1)
        for level in RATIO_QUANTILES
    ]
    q01, q50, q99, largest = (jnp.where(count > 0, jnp.exp(ordered[rank]), 0.0) for rank in ranks)
    return {
        "ratio_mean": mean(jnp.exp(log_ratio)),
        "ratio_q01": q01,
        "ratio_q50": q50,
        "ratio_q99": q99,
        "ratio_max": largest,
        "clip_fraction": fraction(cut, active),
        "clip_fraction_positive": fraction(cut, positive),
        "clip_fraction_negative": fraction(cut, negative),
        "approx_kl": mean(jnp.expm1(log_ratio) - log_ratio),
        "ess": ess,
        "log_ratio_second_moment": mean(log_ratio**2),
    }
