"""One sampled batch of an enumerable problem, through the code that trains."""

import jax
import jax.numpy as jnp

from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.surrogate import SurrogateConfig, grpo_surrogate
from staleness_grpo.types import Array


def sampled_cotangent(
    problem: Problem,
    policy_logprobs_NxYxR: Array,
    behavior_logprobs_NxYxR: Array,
    objective: SurrogateConfig,
    key: jax.Array,
) -> jax.Array:
    """dL/dlog pi_theta [N, Y, R] of one batch: for each prompt one group of G responses, drawn from phi.

    Drawn from the exact distribution over responses; advantages and surrogate are those of the training loop.
    Unbiased for `exact.logprob_cotangent` with 'response' and 'constant' length normalization, and biased by
    O(1 / (N G)) with 'tokens', a ratio of sums. Its variance falls as 1/N. It has the same pullback as the exact
    cotangent.
    """
    num_prompts = len(policy_logprobs_NxYxR)
    log_probs_Nx1xY = jnp.sum(behavior_logprobs_NxYxR, axis=-1)[:, None]
    shape = (num_prompts, problem.group_size)
    responses_NxG = jax.random.categorical(key, log_probs_Nx1xY, axis=-1, shape=shape)
    prompts_Nx1 = jnp.arange(num_prompts)[:, None]
    levels_M = jnp.asarray(problem.levels_M, policy_logprobs_NxYxR.dtype)
    level_NxG = jnp.asarray(problem.level_NxY)[prompts_Nx1, responses_NxG]
    advantages_NxG = group_advantages(
        levels_M[level_NxG], normalize_std=objective.normalize_std, std_epsilon=objective.std_epsilon
    )

    def loss(logprobs_NxYxR):
        return grpo_surrogate(
            logprobs_NxYxR[prompts_Nx1, responses_NxG].reshape(advantages_NxG.size, -1),
            behavior_logprobs_NxYxR[prompts_Nx1, responses_NxG].reshape(advantages_NxG.size, -1),
            advantages_NxG.ravel(),
            jnp.asarray(problem.mask_YxR)[responses_NxG].reshape(advantages_NxG.size, -1),
            objective,
        )[0]

    return -jax.grad(loss)(policy_logprobs_NxYxR)
