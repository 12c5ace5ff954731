"""Takes samples of a step's batch: some prompts with their responses, as text that people read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.truncation import Truncation
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.tasks.base import Task
from staleness_grpo.training.loss import logprobs_function, scored_batch
from staleness_grpo.types import Array, PyTree, Rollout

# (params, rollout) -> (groups of the rollout, their log-probabilities [N, G, R] under params)
Take = Callable[[PyTree, Rollout], tuple[Rollout, Array]]


@dataclasses.dataclass(frozen=True)
class PendingSamples:
    """Holds the first groups of a step's batch, whose arrays the device may not have yet."""

    task: Task  # decodes the tokens
    step: int
    lag_N: np.ndarray  # of the groups of the whole batch
    rollout: Rollout
    policy_logprobs_NxGxR: Array

    def records(self) -> list[dict[str, Any]]:
        """Waits for the arrays, and returns a record for each group."""
        rollout, policy_logprobs = jax.device_get((self.rollout, self.policy_logprobs_NxGxR))
        prompts, responses = rollout.prompts, rollout.responses
        mask_NxGxR = responses.mask_NxGxR
        length_NxG = mask_NxGxR.sum(axis=-1)
        # Masked places hold 0 in both, and a response has at least one token.
        log_ratio_NxGxR = np.subtract(
            policy_logprobs, responses.behavior_logprobs_NxGxR, dtype=np.float64
        )
        log_ratio_NxG = log_ratio_NxGxR.sum(axis=-1)
        return [
            {
                "step": self.step,
                "slot": slot,
                "lag": self.lag_N[slot],
                "prompt_index": prompts.index_N[slot],
                "prompt": self.task.decode(prompts.tokens_NxP[slot][prompts.mask_NxP[slot]]),
                "responses": [
                    self.task.decode(tokens_R[mask_R])
                    for tokens_R, mask_R in zip(
                        responses.tokens_NxGxR[slot], mask_NxGxR[slot], strict=True
                    )
                ],
                "rewards": rollout.rewards_NxG[slot],
                "lengths": length_NxG[slot],
                "log_ratio_sum": log_ratio_NxG[slot],
                "log_ratio_mean": log_ratio_NxG[slot] / length_NxG[slot],
            }
            for slot in range(len(prompts.index_N))
        ]


def make_take(
    policy: AnyPolicy,
    temperature: float,
    num_samples: int,
    multiple_of: int,
    microbatch_prompts: int,
    truncation: Truncation | None = None,
) -> Take:
    """Returns the program that takes the first groups of a batch. It runs under the run's mesh.

    The program runs the policy on these groups alone, without a gradient. Every process gets the
    result, because any of them may hold the groups.

    Args:
      policy, temperature: the settings of the run.
      num_samples: number of groups to take.
      multiple_of: number of shards of a batch. The policy runs on a multiple of it.
      microbatch_prompts: number of groups that the policy processes at a time; 0: all at once.
      truncation: that of the learner's log-probabilities, if there is one.
    """
    block = microbatch_prompts or multiple_of
    num_scored = -(-num_samples // block) * block
    logprobs_of = logprobs_function(policy, temperature, microbatch_prompts, truncation)

    @jax.jit
    def take(params: PyTree, rollout: Rollout) -> tuple[Rollout, Array]:
        scored = jax.tree.map(lambda leaf: mesh_lib.keep_split(leaf[:num_scored]), rollout)
        logprobs, _ = logprobs_of(params, *scored_batch(scored))
        return _replicated(jax.tree.map(lambda leaf: leaf[:num_samples], (scored, logprobs)))

    return take


def _replicated(tree: PyTree) -> PyTree:
    """Constrains traced arrays to be whole on every device, if a mesh of several is in use."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P()), tree)
