"""Exact population coefficients of the published corrections, by differentiating what the training loop uses.

A correction's per-token objective is, in A, a function of the sign times |A|, plus at most a penalty that does not
depend on A. So its derivatives at A = 1, -1 and 0 are all there is to know, and the expectation over the group
enters through E[A+] and E[A-] alone, as in `exact`.

A correction that reads the whole batch (a quantile, a second moment) is evaluated on the population: every response
three times, once for each sign of its advantage, weighted by the probability of that. This is the limit of large
batches; in a finite batch the statistic is random, which biases the gradient by O(1/B).
"""

from collections.abc import Sequence

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


def coefficients(problem: Problem, objective: SurrogateConfig, name: str, overrides: dict[str, float]) -> Coefficients:
    """The correction `name` for `exact.corrected_gradient`, with `overrides` in place of its default parameters.

    The proximal policy is the policy itself: one optimizer step per rollout batch.

    Raises:
      ValueError: as `registry.bind` does, and for a correction that reads the size of A: its expectation needs the
        whole distribution of A, not its positive and negative parts.
    """
    correction = registry.bind(name, objective, overrides)
    if registry.CORRECTIONS[name].reads_advantage_size:
        raise ValueError(f"{name} reads the size of the advantages: no coefficients at A = +1 and -1 describe it")

    def of(policy_logprobs_NxYxR, behavior_logprobs_NxYxR):
        probs_NxY = jnp.exp(jnp.sum(behavior_logprobs_NxYxR, axis=-1))
        level_probs_NxM = level_probabilities(problem, probs_NxY)
        signs_SxNxM = sign_probabilities(level_probs_NxM, problem.levels_M, problem.group_size, objective)
        signs_SxNxY = jnp.stack([jnp.take_along_axis(part, problem.level_NxY, axis=1) for part in signs_SxNxM])
        shape = (len(SIGNS), *policy_logprobs_NxYxR.shape)
        policy_logprobs = jnp.broadcast_to(policy_logprobs_NxYxR[None], shape)
        batch = TokenBatch(
            policy_logprobs=policy_logprobs,
            behavior_logprobs=jnp.broadcast_to(behavior_logprobs_NxYxR[None], shape),
            proximal_logprobs=jax.lax.stop_gradient(policy_logprobs),
            advantages=jnp.broadcast_to(jnp.array(SIGNS, probs_NxY.dtype)[:, None, None, None], (*shape[:-1], 1)),
            mask=jnp.broadcast_to(jnp.asarray(problem.mask_YxR)[None, None], shape),
            weights=(signs_SxNxY * probs_NxY[None])[..., None],
        )
        on_positive, on_negative, always = token_slopes(batch, correction)
        return on_positive - always, always - on_negative, always

    return of


def one_of(choices: Sequence[Coefficients], index: Array) -> Coefficients:
    """The coefficients number `index`, which may be traced: one compiled program serves all corrections."""

    def of(policy_logprobs_NxYxR, behavior_logprobs_NxYxR):
        return jax.lax.switch(index, choices, policy_logprobs_NxYxR, behavior_logprobs_NxYxR)

    return of
