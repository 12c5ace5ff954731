"""Generates rollouts: prompts, noise, batches of one compiled shape, and their scores."""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.runtime.hashing import uniform_integers
from staleness_grpo.tasks.base import ArrayTask, Task, TextTask
from staleness_grpo.training.programs import Programs
from staleness_grpo.training.rewards import Judging, RewardPool
from staleness_grpo.types import Prompts, PyTree, Responses, Rollout

Watch = Callable[[str, PyTree], None]  # (the part of a step that has ended, its arrays)


def watch_nothing(part: str, arrays: PyTree) -> None:
    """Ignores what it is told."""


# The purpose of a random draw: draws for different purposes are independent.
TRAINING, EVALUATION = 1, 2


@dataclasses.dataclass(frozen=True)
class PendingRollout:
    """Sampled groups on the host, which worker processes may still be judging."""

    rollout: Rollout  # without rewards, unless `judging` is None
    judging: Judging | None

    def ready(self) -> bool:
        """Returns whether `result` would return at once."""
        return self.judging is None or self.judging.done()

    def result(self) -> Rollout:
        """Waits for the rewards, and returns the groups with them."""
        if self.judging is None:
            return self.rollout
        rewards_B, outcome_B = self.judging.result()
        shape = self.rollout.responses.tokens_NxGxR.shape[:2]
        return dataclasses.replace(
            self.rollout,
            rewards_NxG=rewards_B.reshape(shape),
            reward_outcome_NxG=outcome_B.reshape(shape),
        )


def draw_prompts(
    task: Task, seed: int, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray
) -> Prompts:
    """Draws the prompt of each (step, slot) pair, uniformly with replacement.

    The choice is a function of (seed, purpose, step, slot) and of nothing else.
    """
    return task.prompts(uniform_integers(task.num_prompts, seed, purpose, steps_N, slots_N))


def purpose_key(run_key: jax.Array, purpose: int) -> jax.Array:
    """Returns the sampling key of one purpose: draws for different purposes are independent."""
    return jax.random.fold_in(run_key, purpose)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples responses for (step, slot) pairs from any parameters, and has the task score them."""

    programs: Programs
    mesh: Mesh
    seed: int
    num_prompts: int  # N, the groups sampled at once
    group_size: int  # G
    updates_per_batch: int = 1
    reward_pool: RewardPool | None = None  # for tasks that judge text
    watch: Watch = watch_nothing  # is told when prompts and responses are there

    @property
    def task(self) -> Task:
        """Returns the task whose prompts are answered."""
        return self.programs.task

    def generate(
        self, params: PyTree, version: int, steps_W: np.ndarray, slots_W: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, PendingRollout]]:
        """Yields (steps, slots, PendingRollout) for all W pairs, at most N groups at a time.

        A process gets the pairs whose slots it keeps. Empty rows are padded with the batch's last
        pair and dropped afterwards, because the sampler is compiled for one shape.
        """
        own_rows = mesh_lib.own_rows(self.mesh, self.num_prompts)
        owner_N = mesh_lib.row_owners(self.mesh, self.num_prompts)
        slot_owners = mesh_lib.row_owners(self.mesh, self.num_prompts // self.updates_per_batch)
        for pairs_N in batch_layouts(slot_owners[slots_W], owner_N):
            padded_N = np.where(pairs_N < 0, pairs_N.max(), pairs_N)
            steps, slots = steps_W[padded_N], slots_W[padded_N]
            prompts = self.prompts(TRAINING, steps, slots)
            self.watch("prompts", ())
            responses = self.sample(params, prompts, TRAINING, steps, slots, self.group_size)
            self.watch("sampling", responses)
            used = pairs_N[own_rows] >= 0
            responses = mesh_lib.get_own_rows(responses, self.mesh)
            if not used.all():
                responses = jax.tree.map(operator.itemgetter(used), responses)
            rows = own_rows[used]
            prompts = jax.tree.map(operator.itemgetter(rows), prompts)
            yield steps[rows], slots[rows], self.start_scoring(prompts, responses, version)

    def evaluate(self, params: PyTree, step: int) -> dict[str, float]:
        """Evaluates the policy on N * G prompts, which are the same at every step.

        Returns:
          `eval_reward`, the mean reward of one sampled response to each prompt. With worker
          processes also `eval_reward_failures`, the number of rewards that failed or timed out.
        """
        slots = np.arange(self.num_prompts * self.group_size)
        prompts = self.prompts(EVALUATION, np.zeros_like(slots), slots)
        responses = self.sample(params, prompts, EVALUATION, np.full_like(slots, step), slots, 1)
        rollout = self.score(prompts, responses, step)
        rewards, outcome = rollout.rewards_NxG, rollout.reward_outcome_NxG
        assert rewards is not None  # `score` waits for them
        failures = 0 if outcome is None else np.count_nonzero(outcome)
        total, failures = mesh_lib.sum_over_processes(np.array([np.sum(rewards), failures]))
        record = {"eval_reward": float(total / len(slots))}
        if outcome is not None:
            record["eval_reward_failures"] = int(failures)
        return record

    def answer_again(self, params: PyTree, step: int) -> Rollout:
        """Samples the batch of a learner step again from `params`, with the same prompts and noise.

        Returns:
          The rollout with its rewards, on the devices and sharded like the batch itself. With the
          parameters that generated the batch, it is the same batch.
        """
        slots_N = np.arange(self.num_prompts)
        steps_N = np.full_like(slots_N, step)
        prompts = self.prompts(TRAINING, steps_N, slots_N)
        responses = self.sample(params, prompts, TRAINING, steps_N, slots_N, self.group_size)
        return mesh_lib.put_own_rows(
            self.score(prompts, responses, step), self.mesh, self.num_prompts
        )

    def prompts(self, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray) -> Prompts:
        """Returns the prompts of these (step, slot) pairs; see `draw_prompts`."""
        return draw_prompts(self.task, self.seed, purpose, steps_N, slots_N)

    def sample(
        self,
        params: PyTree,
        prompts: Prompts,
        purpose: int,
        steps_N: np.ndarray,
        slots_N: np.ndarray,
        group_size: int,
    ) -> Responses:
        """Samples responses on the device with the noise of (seed, purpose, step, slot).

        The group slots are sharded over the mesh.
        """
        indices = (steps_N.astype(np.int32), slots_N.astype(np.int32))
        with jax.set_mesh(self.mesh):
            sharding = mesh_lib.batch_sharding(self.mesh)
            prompts, steps_N, slots_N = mesh_lib.put((prompts, *indices), sharding)
            key = purpose_key(jax.random.key(self.seed), purpose)
            return self.programs.sample(params, prompts, key, steps_N, slots_N, group_size)

    def score(self, prompts: Prompts, responses: Responses, version: int) -> Rollout:
        """Fetches this process's rows of a batch and waits for their rewards."""
        rows = mesh_lib.own_rows(self.mesh, len(prompts.index_N))
        prompts = jax.tree.map(operator.itemgetter(rows), prompts)
        responses = mesh_lib.get_own_rows(responses, self.mesh)
        return self.start_scoring(prompts, responses, version).result()

    def start_scoring(self, prompts: Prompts, responses: Responses, version: int) -> PendingRollout:
        """Starts judging responses on the host, in the worker processes if there are any."""
        judged = [
            np.asarray(array)
            for array in (prompts.index_N, responses.tokens_NxGxR, responses.mask_NxGxR)
        ]
        versions = np.full(len(prompts.index_N), version, np.int32)
        rollout = Rollout(
            prompts=prompts, responses=responses, rewards_NxG=None, behavior_version_N=versions
        )
        if self.reward_pool is not None:
            samples = cast(TextTask, self.task).samples(*judged)
            return PendingRollout(rollout, self.reward_pool.submit(*samples))
        rewards_NxG = cast(ArrayTask, self.task).rewards(*judged)
        return PendingRollout(dataclasses.replace(rollout, rewards_NxG=rewards_NxG), None)


def batch_layouts(owner_W: np.ndarray, owner_N: np.ndarray) -> Iterator[np.ndarray]:
    """Lays out W pairs in batches of N rows, each pair in a row of its own process.

    Pairs keep their order. With one process they fill one batch after another.

    Args:
      owner_W: the process that keeps the slot of each pair.
      owner_N: the process that owns each row of a batch.

    Yields:
      For each batch the pair [N] that stands in each row, or -1 for an empty row.
    """
    queues = [
        (np.flatnonzero(owner_W == process), np.flatnonzero(owner_N == process))
        for process in np.unique(owner_N)
    ]
    num_batches = max((-(-len(pairs) // len(rows)) for pairs, rows in queues), default=0)
    for number in range(num_batches):
        pairs_N = np.full(len(owner_N), -1)
        for pairs, rows in queues:
            chosen = pairs[number * len(rows) : (number + 1) * len(rows)]
            pairs_N[rows[: len(chosen)]] = chosen
        yield pairs_N
