"""A policy on an enumerable task: the log-probability of every response to every prompt.

Shape letters beyond the legend of `types.py`, used throughout `bias/`: N, the prompts of the population, each
with the same weight; Y, the enumerated responses; M, the distinct reward levels; C, the prefixes on which the
network is evaluated.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.tasks.enumerable import EnumerableTask
from staleness_grpo.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Everything that the population surrogate needs but for the parameters; a pytree, so jit can take it.

    `apply(params, tokens_BxT) -> logits_BxTxV` is any causal policy: the logits at position t, which predict
    token t + 1, may depend on tokens 0..t only.
    """

    inputs_CxT: Array  # int32, N * C prompts followed by prefixes of R - 1 tokens, prompt by prompt
    prefix_YxR: Array  # int32, which of a prompt's C prefixes begins like the response's first t tokens
    tokens_YxR: Array  # int32
    mask_YxR: Array  # bool
    level_NxY: Array  # int32, index of the response's reward in levels_M
    levels_M: Array  # float, the distinct rewards
    apply: Callable[[PyTree, Array], jax.Array] = dataclasses.field(metadata={"static": True})
    group_size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_task(cls, apply: Callable, task: EnumerableTask, group_size: int) -> Self:
        """All prompts of the task, with the policy's `apply`."""
        tokens_YxR, mask_YxR = task.responses
        prefixes_CxR1, prefix_YxR = maximal_prefixes(tokens_YxR, mask_YxR)
        prompts_NxP = task.prompts(np.arange(task.num_prompts)).tokens_NxP
        inputs = np.concatenate(
            [
                np.repeat(prompts_NxP, len(prefixes_CxR1), axis=0),
                np.tile(prefixes_CxR1, (len(prompts_NxP), 1)),
            ],
            axis=1,
        )
        levels_M, level_NxY = np.unique(task.reward_table, return_inverse=True)
        return cls(
            inputs_CxT=inputs,
            prefix_YxR=prefix_YxR,
            tokens_YxR=tokens_YxR,
            mask_YxR=mask_YxR,
            level_NxY=level_NxY.reshape(task.reward_table.shape).astype(np.int32),
            levels_M=levels_M.astype(np.float64),
            apply=apply,
            group_size=group_size,
        )


def maximal_prefixes(tokens_YxR: np.ndarray, mask_YxR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct prefixes of R - 1 tokens that a response can go on from, and where each shorter one is.

    One causal pass over these C prefixes holds the next-token distribution after *every* prefix: the network
    sees V^(R-1) sequences instead of V^R.

    Returns:
      (prefixes [C, R-1], prefix_YxR): prefix_YxR[y, t] is the first prefix that begins with y's first t tokens;
      0 where y is masked.
    """
    num_responses, length = tokens_YxR.shape
    prefixes = np.unique(tokens_YxR[mask_YxR[:, -1], : length - 1], axis=0)
    first = {}
    for c, prefix in enumerate(prefixes.tolist()):
        for t in range(length):
            first.setdefault(tuple(prefix[:t]), c)
    prefix_YxR = np.zeros((num_responses, length), dtype=np.int32)
    for y, (tokens, mask) in enumerate(zip(tokens_YxR.tolist(), mask_YxR.tolist(), strict=True)):
        for t in range(sum(mask)):
            prefix_YxR[y, t] = first[tuple(tokens[:t])]
    return prefixes.astype(np.int32), prefix_YxR


def response_logprobs(problem: Problem, params: PyTree) -> jax.Array:
    """log pi(y_t | x, y_<t) at temperature 1, [N, Y, R], 0 where masked; float32 or better."""
    num_prompts = problem.level_NxY.shape[0]
    length = problem.tokens_YxR.shape[1]
    logits = problem.apply(params, problem.inputs_CxT)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits_NxCxRxV = logits[:, -length:].reshape(num_prompts, -1, length, logits.shape[-1])
    logprobs_NxCxRxV = jax.nn.log_softmax(logits_NxCxRxV, axis=-1)
    logprobs_NxYxR = logprobs_NxCxRxV[:, problem.prefix_YxR, np.arange(length), problem.tokens_YxR]
    return jnp.where(problem.mask_YxR[None], logprobs_NxYxR, 0.0)


def level_probabilities(problem: Problem, probs_NxY: Array) -> jax.Array:
    """Probability [N, M] of each reward level, given that of each response."""
    attained_NxYxM = problem.level_NxY[..., None] == np.arange(len(problem.levels_M))[None, None]
    return jnp.einsum("ny,nym->nm", probs_NxY, attained_NxYxM.astype(probs_NxY.dtype))


def expected_reward(problem: Problem, params: PyTree) -> jax.Array:
    """J(theta), the mean reward over prompts and responses."""
    probs_NxY = jnp.exp(jnp.sum(response_logprobs(problem, params), axis=-1))
    return jnp.mean(level_probabilities(problem, probs_NxY) @ jnp.asarray(problem.levels_M, probs_NxY.dtype))
