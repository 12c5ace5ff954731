"""Computes the log-probability of every response to every prompt of an enumerable task.

In the package `bias`, N is the number of prompts in the population. All prompts have equal weight.
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
    """Holds all inputs of the population surrogate except the parameters.

    A problem is a pytree, so it can be an argument of jitted functions. `apply` is any causal
    policy with the signature `apply(params, tokens_BxT) -> logits_BxTxV`. The logits at position t
    predict token t + 1 and may depend on tokens 0..t only.
    """

    # int32. Each row is a prompt followed by one response prefix, so T is P + R - 1 here. Row
    # n * (number of prefixes) + k has prompt n and prefix k.
    inputs_OxT: Array
    # int32, index of a prefix that begins with the response's first t tokens
    prefix_YxR: Array
    tokens_YxR: Array  # int32
    mask_YxR: Array  # bool
    level_NxY: Array  # int32, index of the response's reward in levels_M
    levels_M: Array  # float, the distinct rewards
    apply: Callable[[PyTree, Array], jax.Array] = dataclasses.field(metadata={"static": True})
    group_size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_task(
        cls, apply: Callable[[PyTree, Array], jax.Array], task: EnumerableTask, group_size: int
    ) -> Self:
        """Makes the problem that contains all prompts of the task."""
        tokens_YxR, mask_YxR = task.responses
        prefixes, prefix_YxR = maximal_prefixes(tokens_YxR, mask_YxR)
        prompts_NxP = task.prompts(np.arange(task.num_prompts)).tokens_NxP
        inputs_OxT = np.concatenate(
            [
                np.repeat(prompts_NxP, len(prefixes), axis=0),
                np.tile(prefixes, (len(prompts_NxP), 1)),
            ],
            axis=1,
        )
        levels_M, level_NxY = np.unique(task.reward_table, return_inverse=True)
        return cls(
            inputs_OxT=inputs_OxT,
            prefix_YxR=prefix_YxR,
            tokens_YxR=tokens_YxR,
            mask_YxR=mask_YxR,
            level_NxY=level_NxY.reshape(task.reward_table.shape).astype(np.int32),
            levels_M=levels_M.astype(np.float64),
            apply=apply,
            group_size=group_size,
        )


def maximal_prefixes(tokens_YxR: np.ndarray, mask_YxR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct prefixes of R - 1 tokens, and where each shorter prefix occurs in them.

    Only prefixes that some response continues are kept. One causal pass over these prefixes gives
    the next-token distribution after every prefix of any length. So the network runs on V^(R-1)
    sequences instead of V^R.

    Returns:
      (prefixes, prefix_YxR), both int32. `prefixes` has shape [number of prefixes, R - 1].
      prefixes[prefix_YxR[y, t]] is the first prefix that begins with the first t tokens of response
      y. Where y is masked, prefix_YxR is 0.
    """
    num_responses, length = tokens_YxR.shape
    prefixes = np.unique(tokens_YxR[mask_YxR[:, -1], : length - 1], axis=0)
    first: dict[tuple[int, ...], int] = {}
    for number, prefix in enumerate(prefixes.tolist()):
        for t in range(length):
            first.setdefault(tuple(prefix[:t]), number)
    prefix_YxR = np.zeros((num_responses, length), dtype=np.int32)
    for y, (tokens, mask) in enumerate(zip(tokens_YxR.tolist(), mask_YxR.tolist(), strict=True)):
        for t in range(sum(mask)):
            prefix_YxR[y, t] = first[tuple(tokens[:t])]
    return prefixes.astype(np.int32), prefix_YxR


def response_logprobs(problem: Problem, params: PyTree) -> jax.Array:
    """Returns log pi(y_t | x, y_<t) at temperature 1, [N, Y, R], 0 where masked.

    The dtype is float32, or float64 if the logits are float64.
    """
    num_prompts = problem.level_NxY.shape[0]
    length = problem.tokens_YxR.shape[1]
    logits = problem.apply(params, problem.inputs_OxT)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # O is the axis of the prefixes of one prompt.
    logits_NxOxRxV = logits[:, -length:].reshape(num_prompts, -1, length, logits.shape[-1])
    logprobs_NxOxRxV = jax.nn.log_softmax(logits_NxOxRxV, axis=-1)
    logprobs_NxYxR = logprobs_NxOxRxV[:, problem.prefix_YxR, np.arange(length), problem.tokens_YxR]
    return jnp.where(problem.mask_YxR[None], logprobs_NxYxR, 0.0)


def score_norms(problem: Problem, params: PyTree) -> jax.Array:
    """Returns |grad_theta log pi(y | x)|^2 of every response, with all parameters, [N, Y]."""
    logprobs_NxYxR, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), params)
    num_prompts, num_responses, _ = logprobs_NxYxR.shape

    def norm(index: Array) -> jax.Array:
        place = index // num_responses, index % num_responses
        score = pull_back(jnp.zeros_like(logprobs_NxYxR).at[place].set(1.0))[0]
        return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(score)]))

    norms = jax.lax.map(norm, jnp.arange(num_prompts * num_responses), batch_size=64)
    return norms.reshape(num_prompts, num_responses)


def level_probabilities(problem: Problem, probs_NxY: Array) -> jax.Array:
    """Returns each reward level's probability [N, M] from the probabilities of the responses."""
    attained_NxYxM = problem.level_NxY[..., None] == np.arange(len(problem.levels_M))[None, None]
    return jnp.einsum("ny,nym->nm", probs_NxY, attained_NxYxM.astype(probs_NxY.dtype))


def expected_reward(problem: Problem, params: PyTree) -> jax.Array:
    """Returns J(theta), the expected reward, averaged over the prompts."""
    probs_NxY = jnp.exp(jnp.sum(response_logprobs(problem, params), axis=-1))
    return jnp.mean(
        level_probabilities(problem, probs_NxY) @ jnp.asarray(problem.levels_M, probs_NxY.dtype)
    )
