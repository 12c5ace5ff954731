"""Derives exact population coefficients of the corrections from the code that trains.

A correction's per-token objective is, in A, a function of the sign times |A|, plus at most a
penalty that does not depend on A. So its derivatives at A = 1, -1 and 0 say all there is to know.
The expectation over the group enters through E[A+] and E[A-] alone, as in `exact`.

A correction that reads the whole batch (a quantile, a second moment) is evaluated on the
population. There each response occurs three times, once for each sign of its advantage, weighted by
the probability of that sign. This is the limit of large batches. In a finite batch the statistic is
random, which biases the gradient by O(1/B).
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
    """Returns the correction `name` as coefficients for `exact.corrected_gradient`.

    The proximal policy is the policy itself: one optimizer step per rollout batch.

    Args:
      problem: the enumerable problem.
      objective: the surrogate, whose clip range serves corrections without one of their own.
      name: a key of `registry.CORRECTIONS`.
      overrides: values of the correction's parameters, in place of their defaults.

    Raises:
      ValueError: as `registry.bind` does. Also for a correction that reads the size of A, because
        its expectation needs the whole distribution of A, not its positive and negative parts.
    """
    correction = registry.bind(name, objective, overrides)
    if registry.CORRECTIONS[name].reads_advantage_size:
        raise ValueError(
            f"{name} reads the size of the advantages, which coefficients at A = +1 and -1 do not "
            "describe: leave it out"
        )

    def evaluate(policy_logprobs_NxYxR: Array, behavior_logprobs_NxYxR: Array) -> tuple[Array, ...]:
        probs_NxY = jnp.exp(jnp.sum(behavior_logprobs_NxYxR, axis=-1))
        level_probs_NxM = level_probabilities(problem, probs_NxY)
        # O: the SIGNS.
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
    """Returns the coefficients number `index`.

    The index may be traced, so that one compiled program serves all corrections.
    """

    def evaluate(policy_logprobs_NxYxR: Array, behavior_logprobs_NxYxR: Array) -> tuple[Array, ...]:
        return jax.lax.switch(index, choices, policy_logprobs_NxYxR, behavior_logprobs_NxYxR)

    return evaluate
