"""Computes the population surrogate L(theta, phi) and its gradient H(theta, phi) by enumeration.

    L = mean_x sum_y pi_phi(y|x) sum_t w_t [ E[A+|y] f+(r_t) - E[A-|y] f-(r_t) ],
    r = pi_theta / pi_phi,  f+(r) = min(r, 1 + clip_high),  f-(r) = max(r, 1 - clip_low),

with A+ = max(A, 0) and A- = max(-A, 0). w_t is a token's weight in the length normalization. The
expectations are over the other responses of the group (see `group_statistics`). This is the
surrogate of arXiv 2607.01083 with an explicit behavior policy phi. The G members of a group are
exchangeable, so it is enough to sum over the responses that one member can give.

H = grad_theta L is one vector-Jacobian product of the log-probabilities with weights
pi_phi w_t (E[A+] c+ - E[A-] c-), c = df/dlog pi_theta. Another correction has another pair
(c+, c-), see `Coefficients`. H is also differentiable in phi, as `smoothness` requires.

The gradient is undefined where r is exactly 1 + clip_high or 1 - clip_low. Here such a token has
gradient 0. Use float64, because the bias is a small difference of nearly equal gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from staleness_grpo.bias.enumeration import Problem, level_probabilities, response_logprobs
from staleness_grpo.bias.group_statistics import expected_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.objective.tokens import LOG_RATIO_CLAMP, clipped_objective
from staleness_grpo.types import Array, PyTree

# A function (policy_logprobs_NxYxR, behavior_logprobs_NxYxR) -> (c+, c-), each broadcastable to
# [N, Y, R]. A token's gradient is c+ grad log pi_theta at advantage 1, and -c- grad log pi_theta at
# advantage -1. An optional third array is the coefficient of a penalty, and is added to both. The
# module `corrected` makes the coefficients of the published corrections. Both arguments are 0 where
# masked, so sums over the last axis are sequence log-probabilities.
Coefficients = Callable[[Array, Array], tuple[Array, ...]]


def clip_coefficients(objective: SurrogateConfig) -> Coefficients:
    """Returns GRPO's coefficients, which are r for unclipped tokens and 0 for clipped ones."""

    def coefficients(policy_logprobs: Array, behavior_logprobs: Array) -> tuple[Array, ...]:
        log_ratio = policy_logprobs - behavior_logprobs
        ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP))
        unclamped = jnp.abs(log_ratio) < LOG_RATIO_CLAMP
        kept_positive = (ratio < 1 + objective.clip_high) & unclamped
        kept_negative = (ratio > 1 - objective.clip_low) & unclamped
        return jnp.where(kept_positive, ratio, 0.0), jnp.where(kept_negative, ratio, 0.0)

    return coefficients


def sequence_is_coefficients(
    policy_logprobs: Array, behavior_logprobs: Array
) -> tuple[Array, Array]:
    """Returns the exact importance weight of the response, pi_theta(y) / pi_phi(y), for each token.

    Returns:
      (c+, c-): the same array [N, Y, 1] twice.
    """
    ratio = jnp.exp(jnp.sum(policy_logprobs - behavior_logprobs, axis=-1, keepdims=True))
    return ratio, ratio


def population_weights(
    problem: Problem, behavior_logprobs_NxYxR: Array, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the factors of the surrogate that depend on phi only.

    The token weights are `objective.surrogate.token_weights` without the factor 1/B:
      'response': 1/|y|;
      'constant': 1/R;
      'tokens': 1/E[|y|], with the expectation under phi over responses and prompts. This is the
      limit of large batches. In a finite batch the divisor is random.

    Returns:
      (pi_phi(y) [N, Y], token weights [1, Y, R], E[A+] and E[A-] stacked [2, N, Y]).
    """
    probs_NxY = jnp.exp(jnp.sum(behavior_logprobs_NxYxR, axis=-1))
    mask_YxR = jnp.asarray(problem.mask_YxR, probs_NxY.dtype)
    length_Y = jnp.sum(mask_YxR, axis=-1)
    divisor: Array | int
    if objective.length_normalization == "response":
        divisor = length_Y[:, None]
    elif objective.length_normalization == "constant":
        divisor = mask_YxR.shape[-1]
    else:
        divisor = jnp.mean(probs_NxY @ length_Y)
    level_probs_NxM = level_probabilities(problem, probs_NxY)
    parts = expected_advantages(level_probs_NxM, problem.levels_M, problem.group_size, objective)
    advantages = jnp.stack(
        [jnp.take_along_axis(part_NxM, problem.level_NxY, axis=1) for part_NxM in parts]
    )
    return probs_NxY, (mask_YxR / divisor)[None], advantages


def logprob_cotangent(
    problem: Problem,
    policy_logprobs_NxYxR: Array,
    behavior_logprobs_NxYxR: Array,
    objective: SurrogateConfig,
    coefficients: Coefficients,
) -> jax.Array:
    """Returns dL / dlog pi_theta [N, Y, R], the weights of the vector-Jacobian product."""
    probs_NxY, token_weights, (positive_NxY, negative_NxY) = population_weights(
        problem, behavior_logprobs_NxYxR, objective
    )
    on_positive, on_negative, *always = coefficients(policy_logprobs_NxYxR, behavior_logprobs_NxYxR)
    signed = positive_NxY[..., None] * on_positive - negative_NxY[..., None] * on_negative
    signed = sum(always, start=signed)
    return probs_NxY[..., None] * token_weights * signed / len(probs_NxY)


def surrogate(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> jax.Array:
    """Returns L(theta, phi), a scalar to maximize, differentiable in theta and phi."""
    policy_logprobs = response_logprobs(problem, params)
    behavior_logprobs = response_logprobs(problem, behavior_params)
    probs_NxY, token_weights, (positive_NxY, negative_NxY) = population_weights(
        problem, behavior_logprobs, objective
    )
    ratio = jnp.exp(
        jnp.clip(policy_logprobs - behavior_logprobs, -LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)
    )
    clip = (objective.clip_low, objective.clip_high)
    per_token = clipped_objective(ratio, positive_NxY[..., None], *clip)
    per_token += clipped_objective(ratio, -negative_NxY[..., None], *clip)
    return jnp.sum(probs_NxY[..., None] * token_weights * per_token) / len(probs_NxY)


def corrected_gradient(
    problem: Problem,
    params: PyTree,
    behavior_params: PyTree,
    objective: SurrogateConfig,
    coefficients: Coefficients,
) -> PyTree:
    """Returns the population gradient of any correction that `Coefficients` can express.

    The gradient is the ascent direction, a pytree like `params`.
    """
    policy_logprobs, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), params)
    behavior_logprobs = response_logprobs(problem, behavior_params)
    return pull_back(
        logprob_cotangent(problem, policy_logprobs, behavior_logprobs, objective, coefficients)
    )[0]


def surrogate_gradient(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> PyTree:
    """Returns H(theta, phi) = grad_theta L(theta, phi).

    H is the ascent direction, a pytree like `params`.
    """
    return corrected_gradient(
        problem, params, behavior_params, objective, clip_coefficients(objective)
    )


def surrogate_bias(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> PyTree:
    """Returns the bias H(theta, phi) - H(theta, theta), a pytree like `params`.

    The difference of the two cotangents is pulled back once. So the result does not lose digits to
    the cancellation of two nearly equal gradients of the network.
    """
    policy_logprobs, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), params)
    behavior_logprobs = response_logprobs(problem, behavior_params)
    coefficients = clip_coefficients(objective)
    stale = logprob_cotangent(problem, policy_logprobs, behavior_logprobs, objective, coefficients)
    fresh = logprob_cotangent(problem, policy_logprobs, policy_logprobs, objective, coefficients)
    return pull_back(stale - fresh)[0]


def clip_fraction(
    problem: Problem,
    policy_logprobs_NxYxR: Array,
    behavior_logprobs_NxYxR: Array,
    objective: SurrogateConfig,
) -> jax.Array:
    """Returns the probability, under phi, of a token that is clipped for a sign it can have.

    A token counts in full if the clip removes its gradient for positive or for negative advantages,
    and that sign is possible. So the result is at least the expected `clip_fraction` of a sampled
    batch. It is exactly 0 if no token is clipped.
    """
    probs_NxY, _, (positive_NxY, negative_NxY) = population_weights(
        problem, behavior_logprobs_NxYxR, objective
    )
    kept_positive, kept_negative = clip_coefficients(objective)(
        policy_logprobs_NxYxR, behavior_logprobs_NxYxR
    )
    clipped = ((kept_positive == 0) & (positive_NxY > 0)[..., None]) | (
        (kept_negative == 0) & (negative_NxY > 0)[..., None]
    )
    token_probs = probs_NxY[..., None] * problem.mask_YxR[None]
    return jnp.sum(jnp.where(clipped, token_probs, 0.0)) / jnp.sum(token_probs)


def performative_objective(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> jax.Array:
    """Returns F(theta), the on-policy objective E_{y ~ pi_theta}[ A sum_t w_t ].

    Advantages and token weights are frozen at phi. The gradient of F at theta = phi includes the
    effect of theta on the data. L(theta, theta) cannot replace F, because with 1/|y| and centered
    advantages L(theta, theta) is identically 0.
    """
    probs_NxY = jnp.exp(jnp.sum(response_logprobs(problem, params), axis=-1))
    _, token_weights, (positive_NxY, negative_NxY) = population_weights(
        problem, response_logprobs(problem, behavior_params), objective
    )
    return jnp.sum(
        probs_NxY * (positive_NxY - negative_NxY) * jnp.sum(token_weights, axis=-1)
    ) / len(probs_NxY)


def group_statistics_bias(
    problem: Problem, params: PyTree, behavior_params: PyTree, objective: SurrogateConfig
) -> PyTree:
    """Returns the part of the bias that group statistics cause, a pytree like `params`.

    Its cause is that advantages are computed in groups from phi instead of groups from theta:

        mean_x sum_y pi_theta(y) sum_t w_t (E_phi[A|y] - E_theta[A|y]) grad log pi_theta(y_t)

    With exact sequence-level importance weights this is the whole bias. The normalization 'tokens'
    is an exception, because its divisor depends on phi too.
    """
    logprobs, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), params)
    _, _, stale = population_weights(
        problem, response_logprobs(problem, behavior_params), objective
    )
    probs_NxY, token_weights, fresh = population_weights(problem, logprobs, objective)
    change_NxY = (stale[0] - stale[1]) - (fresh[0] - fresh[1])
    return pull_back((probs_NxY * change_NxY)[..., None] * token_weights / len(probs_NxY))[0]
