"""Derives the exact population coefficients of the corrections from the code that trains.

A correction's per-token objective is |A| times a function of the sign of A, plus, in some
corrections, a penalty that does not depend on A. So its derivatives at A = 1, -1 and 0 determine
the objective for every A. The expectation over the group needs only E[A+] and E[A-], as in `exact`.

Some corrections use a statistic of the whole batch, such as a quantile or a second moment. Here the
statistic is computed on the population. The population contains each response three times, once for
each sign of its advantage, weighted by the probability of that sign. This is the limit of large
batches. In a finite batch the statistic is random, which biases the gradient by O(1/B).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from staleness_grpo.bias.enumeration import Problem, level_probabilities
from staleness_grpo.bias.exact import Coefficients
from staleness_grpo.bias.group_statistics import sign_probabilities
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, token_slopes
from staleness_grpo.objective.tokens import TokenBatch
from staleness_grpo.types import Array

SIGNS = (1.0, -1.0, 0.0)


def coefficients(
    problem: Problem, objective: SurrogateConfig, name: str, overrides: Mapping[str, float]
) -> Coefficients:
    """Returns the coefficients of the correction `name`, for `exact.corrected_gradient`.

    The proximal policy is the policy itself, as with one optimizer step per rollout batch.

    Args:
      problem: the enumerable problem.
      objective: the surrogate. Corrections without their own clip range use its clip range.
      name: a key of `registry.CORRECTIONS`.
      overrides: parameter values of the correction that replace the defaults.

    Raises:
      ValueError: `registry.bind` refuses the arguments. Also if the correction reads the size of A,
        because its expectation depends on the whole distribution of A and not only on E[A+] and
        E[A-]. Also if it has the optimal baseline, because A then depends on the weights and scores
        of all responses of the group, and not only on their rewards.
    """
    correction = registry.bind(name, objective, overrides)
    if registry.CORRECTIONS[name].reads_advantage_size:
        raise ValueError(
            f"{name} reads the size of the advantages, so it has no exact coefficients: "
            "choose another correction"
        )
    if registry.CORRECTIONS[name].optimal_baseline:
        raise ValueError(
            f"the baseline of {name} reads the score of every response of the group, so it has no "
            "exact coefficients: choose another correction"
        )

    def evaluate(policy_logprobs_NxYxR: Array, behavior_logprobs_NxYxR: Array) -> tuple[Array, ...]:
        probs_NxY = jnp.exp(jnp.sum(behavior_logprobs_NxYxR, axis=-1))
        level_probs_NxM = level_probabilities(problem, probs_NxY)
        # O is the axis of SIGNS.
        sign_probs_OxNxM = sign_probabilities(
            level_probs_NxM, problem.levels_M, problem.group_size, objective
        )
        sign_probs_OxNxY = jnp.stack(
            [
                jnp.take_along_axis(probs_NxM, problem.level_NxY, axis=1)
                for probs_NxM in sign_probs_OxNxM
            ]
        )
        shape = (len(SIGNS), *policy_logprobs_NxYxR.shape)
        policy_logprobs = jnp.broadcast_to(policy_logprobs_NxYxR[None], shape)
        batch = TokenBatch(
            policy_logprobs=policy_logprobs,
            behavior_logprobs=jnp.broadcast_to(behavior_logprobs_NxYxR[None], shape),
            proximal_logprobs=jax.lax.stop_gradient(policy_logprobs),
            advantages=jnp.broadcast_to(
                jnp.array(SIGNS, probs_NxY.dtype)[:, None, None, None], (*shape[:-1], 1)
            ),
            mask=jnp.broadcast_to(jnp.asarray(problem.mask_YxR)[None, None], shape),
            weights=(sign_probs_OxNxY * probs_NxY[None])[..., None],
        )
        on_positive, on_negative, always = token_slopes(batch, correction)
        return on_positive - always, always - on_negative, always

    return evaluate


def one_of(choices: Sequence[Coefficients], index: Array) -> Coefficients:
    """Returns coefficients that evaluate `choices[index]`.

    The index may be traced. So one compiled program can be used for all corrections.
    """

    def evaluate(policy_logprobs_NxYxR: Array, behavior_logprobs_NxYxR: Array) -> tuple[Array, ...]:
        return jax.lax.switch(index, choices, policy_logprobs_NxYxR, behavior_logprobs_NxYxR)

    return evaluate
