"""Samples batches of an enumerable problem, and differentiates them with the training code."""

import jax
import jax.numpy as jnp

from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.objective.advantages import group_advantages, optimal_baseline_weights
from staleness_grpo.objective.surrogate import (
    SurrogateConfig,
    TokenObjective,
    corrected_surrogate,
    grpo_surrogate,
)
from staleness_grpo.types import Array


def sampled_cotangent(
    problem: Problem,
    policy_logprobs_NxYxR: Array,
    behavior_logprobs_NxYxR: Array,
    objective: SurrogateConfig,
    batch_prompts: int,
    key: jax.Array,
    token_objective: TokenObjective | None = None,
    score_norms_NxY: Array | None = None,
) -> jax.Array:
    """Samples one batch and returns its dL/dlog pi_theta, [N, Y, R].

    A batch has a group of G responses from phi for each of `batch_prompts` random prompts. The
    responses are drawn from their exact distribution. Advantages and surrogate are computed by the
    code of the training loop.

    The result is an estimate of `exact.logprob_cotangent`. With the length normalizations
    'response' and 'constant' the estimate is unbiased. With 'tokens', a ratio of sums, its bias is
    O(1 / (batch_prompts G)). The pullback of the exact cotangent can be applied to the result.

    Args:
      problem: the enumerable problem.
      policy_logprobs_NxYxR: log pi_theta, 0 where masked.
      behavior_logprobs_NxYxR: log pi_phi, 0 where masked.
      objective: the surrogate.
      batch_prompts: number of prompts in the batch, drawn without replacement.
      key: the random key for prompts and responses.
      token_objective: a correction from `corrections.registry.bind` that replaces GRPO's clip. Its
        proximal policy is the policy itself.
      score_norms_NxY: the `enumeration.score_norms` of theta, for a correction with the optimal
        baseline; None for the mean as baseline.
    """
    # O is the axis of the batch's prompts.
    prompt_key, response_key = jax.random.split(key)
    prompts_Ox1 = jax.random.permutation(prompt_key, len(policy_logprobs_NxYxR))[
        :batch_prompts, None
    ]
    log_probs_Ox1xY = jnp.sum(behavior_logprobs_NxYxR, axis=-1)[prompts_Ox1]
    shape = (batch_prompts, problem.group_size)
    responses_OxG = jax.random.categorical(response_key, log_probs_Ox1xY, axis=-1, shape=shape)
    levels_M = jnp.asarray(problem.levels_M, policy_logprobs_NxYxR.dtype)
    level_OxG = jnp.asarray(problem.level_NxY)[prompts_Ox1, responses_OxG]
    baseline_weights_OxG = None
    if score_norms_NxY is not None:
        place = prompts_Ox1, responses_OxG
        baseline_weights_OxG = optimal_baseline_weights(
            policy_logprobs_NxYxR[place],
            behavior_logprobs_NxYxR[place],
            jnp.asarray(problem.mask_YxR)[responses_OxG],
            jnp.asarray(score_norms_NxY)[place],
        )
    advantages_OxG = group_advantages(
        levels_M[level_OxG],
        normalize_std=objective.normalize_std,
        std_epsilon=objective.std_epsilon,
        baseline_weights_NxG=baseline_weights_OxG,
    )

    def sampled(array_NxYxR: Array) -> jax.Array:
        """Returns the entries of the sampled responses, [B, R]."""
        return array_NxYxR[prompts_Ox1, responses_OxG].reshape(advantages_OxG.size, -1)

    mask_BxR = jnp.asarray(problem.mask_YxR)[responses_OxG].reshape(advantages_OxG.size, -1)
    behavior_logprobs_BxR = sampled(behavior_logprobs_NxYxR)

    def loss(logprobs_NxYxR: Array) -> jax.Array:
        logprobs_BxR, advantages_B = sampled(logprobs_NxYxR), advantages_OxG.ravel()
        if token_objective is None:
            value, _ = grpo_surrogate(
                logprobs_BxR, behavior_logprobs_BxR, advantages_B, mask_BxR, objective
            )
            return value
        value, _ = corrected_surrogate(
            logprobs_BxR,
            behavior_logprobs_BxR,
            logprobs_BxR,
            advantages_B,
            mask_BxR,
            objective.length_normalization,
            token_objective,
        )
        return value

    return -jax.grad(loss)(policy_logprobs_NxYxR)
