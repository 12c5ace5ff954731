"""One sampled batch of an enumerable problem, through the code that trains."""

import jax
import jax.numpy as jnp

from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig, TokenObjective, corrected_surrogate, grpo_surrogate
from staleness_grpo.types import Array


def sampled_cotangent(
    problem: Problem,
    policy_logprobs_NxYxR: Array,
    behavior_logprobs_NxYxR: Array,
    objective: SurrogateConfig,
    batch_prompts: int,
    key: jax.Array,
    token_objective: TokenObjective | None = None,
) -> jax.Array:
    """dL/dlog pi_theta [N, Y, R] of one batch: a group of G responses from phi for each of Q random prompts.

    The Q = `batch_prompts` prompts are drawn without replacement, the responses from their exact distribution;
    advantages and surrogate are those of the training loop. Unbiased for `exact.logprob_cotangent` with
    'response' and 'constant' length normalization, and biased by O(1 / (Q G)) with 'tokens', a ratio of sums. It
    has the same pullback as the exact cotangent. `token_objective`, bound by `corrections.registry`, stands in for
    GRPO's clip; the proximal policy is then the policy itself.
    """
    prompt_key, response_key = jax.random.split(key)
    prompts_Qx1 = jax.random.permutation(prompt_key, len(policy_logprobs_NxYxR))[:batch_prompts, None]
    log_probs_Qx1xY = jnp.sum(behavior_logprobs_NxYxR, axis=-1)[prompts_Qx1]
    shape = (batch_prompts, problem.group_size)
    responses_QxG = jax.random.categorical(response_key, log_probs_Qx1xY, axis=-1, shape=shape)
    levels_M = jnp.asarray(problem.levels_M, policy_logprobs_NxYxR.dtype)
    level_QxG = jnp.asarray(problem.level_NxY)[prompts_Qx1, responses_QxG]
    advantages_QxG = group_advantages(
        levels_M[level_QxG], normalize_std=objective.normalize_std, std_epsilon=objective.std_epsilon
    )

    def chosen(array_NxYxR):
        return array_NxYxR[prompts_Qx1, responses_QxG].reshape(advantages_QxG.size, -1)

    mask_BxR = jnp.asarray(problem.mask_YxR)[responses_QxG].reshape(advantages_QxG.size, -1)
    behavior_logprobs_BxR = chosen(behavior_logprobs_NxYxR)

    def loss(logprobs_NxYxR):
        logprobs, advantages = chosen(logprobs_NxYxR), advantages_QxG.ravel()
        if token_objective is None:
            return grpo_surrogate(logprobs, behavior_logprobs_BxR, advantages, mask_BxR, objective)[0]
        normalization = objective.length_normalization
        return corrected_surrogate(
            logprobs, behavior_logprobs_BxR, logprobs, advantages, mask_BxR, normalization, token_objective
        )[0]

    return -jax.grad(loss)(policy_logprobs_NxYxR)
