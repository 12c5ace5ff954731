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
    updates_per_batch: int = 1
    reward_pool: RewardPool | None = None  # for tasks that judge text

    def generate(
        self, params: PyTree, version: int, steps_K: np.ndarray, slots_K: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, PendingRollout]]:
        """Yields (steps, slots, PendingRollout) until all K pairs are done, at most N groups at a time.

        A process gets the pairs whose slots it keeps. A place of a batch without a pair is filled with a copy of its
        first pair, which is dropped again: the sampler is compiled for one shape.
        """
        own_rows = mesh_lib.own_rows(self.mesh, self.num_prompts)
        owner_N = mesh_lib.row_owners(self.mesh, self.num_prompts)
        slot_owners = mesh_lib.row_owners(self.mesh, self.num_prompts // self.updates_per_batch)
        for pairs_N in batch_layouts(slot_owners[slots_K], owner_N):
            padded_N = np.where(pairs_N < 0, pairs_N.max(), pairs_N)
            steps, slots = steps_K[padded_N], slots_K[padded_N]
            prompts = self.prompts(TRAINING, steps, slots)
            responses = self.sample(params, prompts, TRAINING, steps, slots, self.group_size)
            used = pairs_N[own_rows] >= 0
            responses = mesh_lib.get_own_rows(responses, self.mesh)
            if not used.all():
                responses = jax.tree.map(operator.itemgetter(used), responses)
            mine = own_rows[used]
            prompts = jax.tree.map(operator.itemgetter(mine), prompts)
            yield steps[mine], slots[mine], self.start_scoring(prompts, responses, version)

    def evaluate(self, params: PyTree, step: int) -> dict[str, float]:
        """`eval_reward`: mean reward of one sampled response to each of N * G prompts, the same at every step.

        With worker processes also `eval_reward_failures`: how many of the rewards failed or timed out.
        """
        slots = np.arange(self.num_prompts * self.group_size)
        prompts = self.prompts(EVALUATION, np.zeros_like(slots), slots)
        responses = self.sample(params, prompts, EVALUATION, np.full_like(slots, step), slots, 1)
        rollout = self.score(prompts, responses, step)
        outcome = rollout.reward_outcome_NxG
        failures = 0 if outcome is None else np.count_nonzero(outcome)
        total, failures = mesh_lib.sum_over_processes(np.array([np.sum(rollout.rewards_NxG), failures]))
        failed = {} if outcome is None else {"eval_reward_failures": int(failures)}
        return {"eval_reward": float(total / len(slots))} | failed

    def answer_again(self, params: PyTree, step: int) -> Rollout:
        """What `params` answer to the prompts of this learner step, with the noise that its batch was sampled with.

        On the devices, sharded like the batch itself. Under the parameters that generated it, the batch again.
        """
        slots_N = np.arange(self.num_prompts)
        steps_N = np.full_like(slots_N, step)
        prompts = self.prompts(TRAINING, steps_N, slots_N)
        responses = self.sample(params, prompts, TRAINING, steps_N, slots_N, self.group_size)
        return mesh_lib.put_own_rows(self.score(prompts, responses, step), self.mesh, self.num_prompts)

    def prompts(self, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray) -> Prompts:
        """The prompt of each (step, slot), uniform with replacement and a function of (seed, purpose, step, slot)."""
        return self.task.prompts(uniform_integers(self.task.num_prompts, self.seed, purpose, steps_N, slots_N))

    def sample(
        self, params: PyTree, prompts: Prompts, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray, group_size: int
    ) -> Responses:
        """Responses on the device, group slots sharded over the mesh, with the noise of (seed, purpose, step, slot)."""
        indices = (steps_N.astype(np.int32), slots_N.astype(np.int32))
        with jax.set_mesh(self.mesh):
            prompts, steps_N, slots_N = mesh_lib.put((prompts, *indices), mesh_lib.batch_sharding(self.mesh))
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
        """Fetches this process's rows of a batch and waits for their rewards."""
        rows = mesh_lib.own_rows(self.mesh, len(prompts.index_N))
        prompts = jax.tree.map(operator.itemgetter(rows), prompts)
        return self.start_scoring(prompts, mesh_lib.get_own_rows(responses, self.mesh), version).result()

    def start_scoring(self, prompts: Prompts, responses: Responses, version: int) -> PendingRollout:
        """Has the task judge responses on the host: here, or in the worker processes if there are any."""
        judged = prompts.index_N, responses.tokens_NxGxR, responses.mask_NxGxR
        versions = np.full(len(prompts.index_N), version, np.int32)
        rollout = Rollout(prompts=prompts, responses=responses, rewards_NxG=None, behavior_version_N=versions)
        if self.reward_pool is not None:
            return PendingRollout(rollout, self.reward_pool.submit(*self.task.samples(*judged)))
        return PendingRollout(dataclasses.replace(rollout, rewards_NxG=self.task.rewards(*judged)), None)


def batch_layouts(owner_K: np.ndarray, owner_N: np.ndarray) -> Iterator[np.ndarray]:
    """K pairs in batches of N rows: for each batch which pair stands in which row, or -1.

    A pair stands in a row of the process `owner_K` that keeps its slot. Pairs keep their order, and with one process
    they fill one batch after another.
    """
    queues = [
        (np.flatnonzero(owner_K == process), np.flatnonzero(owner_N == process)) for process in np.unique(owner_N)
    ]
    for number in range(max((-(-len(pairs) // len(rows)) for pairs, rows in queues), default=0)):
        layout_N = np.full(len(owner_N), -1)
        for pairs, rows in queues:
            chosen = pairs[number * len(rows) : (number + 1) * len(rows)]
            layout_N[rows[: len(chosen)]] = chosen
        yield layout_N
