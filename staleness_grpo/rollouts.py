"""Generating and scoring rollouts: which prompts, which noise, padded into batches of one compiled shape."""

import dataclasses
import operator
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo import mesh as mesh_lib
from staleness_grpo.hashing import uniform_integers
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.rewards import Judging, RewardPool
from staleness_grpo.tasks.base import Task
from staleness_grpo.types import Prompts, PyTree, Responses, Rollout

# The purpose of a random draw: draws for different purposes are independent.
TRAINING, EVALUATION = 1, 2


@dataclasses.dataclass(frozen=True)
class PendingRollout:
    """Sampled groups on the host, whose rewards may still be on their way from the worker processes."""

    rollout: Rollout  # without rewards while `judging` is there
    judging: Judging | None

    def ready(self) -> bool:
        """Whether `result` returns at once."""
        return self.judging is None or self.judging.done()

    def result(self) -> Rollout:
        """The groups with their rewards, which are waited for."""
        if self.judging is None:
            return self.rollout
        rewards_B, outcome_B = self.judging.result()
        shape = self.rollout.responses.tokens_NxGxR.shape[:2]
        return dataclasses.replace(
            self.rollout, rewards_NxG=rewards_B.reshape(shape), reward_outcome_NxG=outcome_B.reshape(shape)
        )


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples responses for (step, slot) pairs from any parameters, and has them scored on the host."""

    policy: Policy
    task: Task
    mesh: Mesh
    seed: int
    num_prompts: int  # N, the groups sampled at once
    group_size: int  # G
    temperature: float
    reward_pool: RewardPool | None = None  # for tasks that judge text

    def generate(
        self, params: PyTree, version: int, steps_K: np.ndarray, slots_K: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, PendingRollout]]:
        """Yields (steps, slots, PendingRollout) until all K pairs are done, at most N groups at a time.

        A last batch with fewer than N pairs is filled with copies of its first pair, which are dropped again:
        the sampler is compiled for one shape.
        """
        for first in range(0, len(steps_K), self.num_prompts):
            steps, slots = (array[first : first + self.num_prompts] for array in (steps_K, slots_K))
            used = len(steps)
            fill = self.num_prompts - used
            padded_steps, padded_slots = (np.append(array, np.repeat(array[:1], fill)) for array in (steps, slots))
            prompts = self.prompts(TRAINING, padded_steps, padded_slots)
            responses = self.sample(params, prompts, TRAINING, padded_steps, padded_slots, self.group_size)
            if fill:
                prompts, responses = jax.tree.map(
                    operator.itemgetter(slice(used)), (prompts, jax.device_get(responses))
                )
            yield steps, slots, self.start_scoring(prompts, responses, version)

    def evaluate(self, params: PyTree, step: int) -> dict[str, float]:
        """`eval_reward`: mean reward of one sampled response to each of N * G prompts, the same at every step.

        With worker processes also `eval_reward_failures`: how many of the rewards failed or timed out.
        """
        slots = np.arange(self.num_prompts * self.group_size)
        prompts = self.prompts(EVALUATION, np.zeros_like(slots), slots)
        responses = self.sample(params, prompts, EVALUATION, np.full_like(slots, step), slots, 1)
        rollout = self.score(prompts, responses, step)
        found = {"eval_reward": float(np.mean(rollout.rewards_NxG))}
        if rollout.reward_outcome_NxG is not None:
            found["eval_reward_failures"] = np.count_nonzero(rollout.reward_outcome_NxG)
        return found

    def answer_again(self, params: PyTree, prompts: Prompts, step: int) -> Rollout:
        """What `params` answer to the prompts of this learner step's batch, with the noise that it was sampled with.

        On the devices, sharded like the batch itself. Under the parameters that generated it, the batch again.
        """
        slots_N = np.arange(self.num_prompts)
        prompts = jax.device_get(prompts)
        responses = self.sample(params, prompts, TRAINING, np.full_like(slots_N, step), slots_N, self.group_size)
        return jax.device_put(self.score(prompts, responses, step), mesh_lib.batch_sharding(self.mesh))

    def prompts(self, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray) -> Prompts:
        """The prompt of each (step, slot), uniform with replacement and a function of (seed, purpose, step, slot)."""
        return self.task.prompts(uniform_integers(self.task.num_prompts, self.seed, purpose, steps_N, slots_N))

    def sample(
        self, params: PyTree, prompts: Prompts, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray, group_size: int
    ) -> Responses:
        """Responses on the device, group slots sharded over the mesh, with the noise of (seed, purpose, step, slot)."""
        indices = (steps_N.astype(np.int32), slots_N.astype(np.int32))
        with jax.set_mesh(self.mesh):
            prompts, steps_N, slots_N = jax.device_put((prompts, *indices), mesh_lib.batch_sharding(self.mesh))
            return sample(
                self.policy,
                params,
                prompts,
                jax.random.fold_in(jax.random.key(self.seed), purpose),
                steps_N,
                slots_N,
                self.temperature,
                group_size=group_size,
                max_length=self.task.max_response_length,
                end_token=self.task.end_token,
                pad_token=self.task.pad_token,
            )

    def score(self, prompts: Prompts, responses: Responses, version: int) -> Rollout:
        """Fetches the responses and waits for their rewards."""
        return self.start_scoring(prompts, responses, version).result()

    def start_scoring(self, prompts: Prompts, responses: Responses, version: int) -> PendingRollout:
        """Fetches the responses and has the task judge them: here, or in the worker processes if there are any."""
        responses = jax.device_get(responses)
        judged = prompts.index_N, responses.tokens_NxGxR, responses.mask_NxGxR
        versions = np.full(len(prompts.index_N), version, np.int32)
        rollout = Rollout(prompts=prompts, responses=responses, rewards_NxG=None, behavior_version_N=versions)
        if self.reward_pool is not None:
            return PendingRollout(rollout, self.reward_pool.submit(*self.task.samples(*judged)))
        return PendingRollout(dataclasses.replace(rollout, rewards_NxG=self.task.rewards(*judged)), None)
