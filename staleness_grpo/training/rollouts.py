"""Generates rollouts: draws prompts, samples responses in fixed-size batches, and scores them."""

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
from staleness_grpo.tasks.own import check_prompts
from staleness_grpo.training.programs import Programs
from staleness_grpo.training.rewards import (
    FailureReports,
    Judging,
    RewardPool,
    finite_rewards,
)
from staleness_grpo.types import Array, Prompts, PyTree, Responses, Rollout

Watch = Callable[[str, PyTree], None]  # (name of the part of a step that has ended, its arrays)


def watch_nothing(part: str, arrays: PyTree) -> None:
    """Does nothing; the default Watch."""


# Purposes of random draws. Draws for different purposes are independent.
TRAINING, EVALUATION, HELD_OUT = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class PendingRollout:
    """Holds sampled groups on the host. Worker processes may still be judging them."""

    rollout: Rollout  # without rewards, unless `judging` is None
    judging: Judging | None

    def ready(self) -> bool:
        """Returns whether the groups are judged, so that `result` returns at once."""
        return self.judging is None or self.judging.done()

    def result(self) -> Rollout:
        """Waits for the rewards, and returns the groups with their rewards."""
        if self.judging is None:
            return self.rollout
        rewards_B, outcome_B, components_BxO = self.judging.result()
        shape = self.rollout.responses.tokens_NxGxR.shape[:2]
        return dataclasses.replace(
            self.rollout,
            rewards_NxG=rewards_B.reshape(shape),
            reward_outcome_NxG=outcome_B.reshape(shape),
            reward_components_NxGxO=(
                None if components_BxO is None else components_BxO.reshape(*shape, -1)
            ),
        )


def draw_prompts(
    task: Task,
    seed: int,
    purpose: int,
    steps_N: np.ndarray,
    slots_N: np.ndarray,
    prompt_indices: np.ndarray | None = None,
) -> Prompts:
    """Draws the prompt of each (step, slot) pair, uniformly with replacement.

    The choice depends on (seed, purpose, step, slot) only. It is one of `prompt_indices`, or of all
    prompts.

    Raises:
      FieldError: the task made a prompt with another shape or with unknown tokens.
    """
    count = task.num_prompts if prompt_indices is None else len(prompt_indices)
    index_N = uniform_integers(count, seed, purpose, steps_N, slots_N)
    if prompt_indices is not None:
        index_N = prompt_indices[index_N]
    prompts = task.prompts(index_N)
    check_prompts(task, index_N, prompts)
    return prompts


def purpose_key(run_key: jax.Array, purpose: int) -> jax.Array:
    """Returns the sampling key of a purpose. Draws for different purposes are independent."""
    return jax.random.fold_in(run_key, purpose)


@dataclasses.dataclass(frozen=True)
class Generator:
    """Samples responses to (step, slot) pairs from any parameters, and starts to score them."""

    programs: Programs
    mesh: Mesh  # of the devices that sample
    seed: int
    num_prompts: int  # N, the groups of a rollout batch
    group_size: int  # G
    updates_per_batch: int = 1
    batch_prompts: int | None = None  # groups sampled at once; None: num_prompts
    reward_pool: RewardPool | None = None  # for tasks that judge text
    learner_mesh: Mesh | None = None  # of the learner, if it is another one
    # The prompts that may be drawn; None: all. Others are held out.
    prompt_indices: np.ndarray | None = None
    report: Callable[[str], None] = dataclasses.field(default_factory=FailureReports)
    watch: Watch = watch_nothing  # is called when prompts, and then responses, are ready

    @property
    def task(self) -> Task:
        """Returns the task whose prompts are answered."""
        return self.programs.task

    @property
    def component_names(self) -> tuple[str, ...]:
        """Returns the names of the reward's components; empty if it is no weighted sum."""
        return () if self.reward_pool is None else self.reward_pool.component_names

    def generate(
        self, params: PyTree, version: int, steps_W: np.ndarray, slots_W: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, PendingRollout]]:
        """Generates groups for W (step, slot) pairs, and yields those of one batch at a time.

        Each item is (steps, slots, PendingRollout). A process gets only the pairs whose slots it
        keeps. The sampler is compiled for one batch shape, `batch_prompts` rows. So empty rows of a
        batch are filled with copies of the batch's last pair, and dropped after sampling.
        """
        num_rows = self.num_prompts if self.batch_prompts is None else self.batch_prompts
        own_rows = mesh_lib.own_rows(self.mesh, num_rows)
        owner_N = mesh_lib.row_owners(self.mesh, num_rows)
        slot_owners = mesh_lib.row_owners(self.mesh, self.num_prompts // self.updates_per_batch)
        for pairs_N in batch_layouts(slot_owners[slots_W], owner_N):
            padded_N = np.where(pairs_N < 0, pairs_N.max(), pairs_N)
            steps, slots = steps_W[padded_N], slots_W[padded_N]
            prompts = self.prompts(TRAINING, steps, slots)
            self.watch("prompts", ())
            responses = self.sample(params, prompts, TRAINING, steps, slots, self.group_size)
            self.watch("sampling", responses)
            is_filled = pairs_N[own_rows] >= 0
            responses = mesh_lib.get_own_rows(responses, self.mesh)
            if not is_filled.all():
                responses = jax.tree.map(operator.itemgetter(is_filled), responses)
            rows = own_rows[is_filled]
            prompts = jax.tree.map(operator.itemgetter(rows), prompts)
            yield steps[rows], slots[rows], self.start_scoring(prompts, responses, version)

    def evaluate(self, params: PyTree, step: int) -> dict[str, float]:
        """Evaluates the policy on N * G prompts. All evaluations use the same prompts.

        Returns:
          `eval_reward`: the mean reward of one sampled response to each prompt.
          `eval_reward_failures`: the number of responses whose judging failed or timed out.
        """
        slots = np.arange(self.num_prompts * self.group_size)
        prompts = self.prompts(EVALUATION, np.zeros_like(slots), slots)
        responses = self.sample(params, prompts, EVALUATION, np.full_like(slots, step), slots, 1)
        rollout = self.score(prompts, responses, step)
        rewards, outcome = rollout.rewards_NxG, rollout.reward_outcome_NxG
        assert rewards is not None and outcome is not None  # `score` waits for them
        sums = np.array([np.sum(rewards), np.count_nonzero(outcome)])
        total, failures = mesh_lib.sum_over_processes(sums)
        return {"eval_reward": float(total / len(slots)), "eval_reward_failures": int(failures)}

    def answer_again(self, params: PyTree, step: int) -> Rollout:
        """Samples a learner step's batch again from `params`, with the same prompts and noise.

        Returns:
          The rollout with its rewards, on the devices, with the sharding of the step's batch. If
          `params` generated the step's batch, the rollout equals that batch.
        """
        slots_N = np.arange(self.num_prompts)
        steps_N = np.full_like(slots_N, step)
        prompts = self.prompts(TRAINING, steps_N, slots_N)
        responses = self.sample(params, prompts, TRAINING, steps_N, slots_N, self.group_size)
        rollout = self.score(prompts, responses, step)
        rollout = dataclasses.replace(rollout, reward_components_NxGxO=None)
        return mesh_lib.put_own_rows(rollout, self.learner_mesh or self.mesh, self.num_prompts)

    def prompts(self, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray) -> Prompts:
        """Returns the prompts of these (step, slot) pairs; see `draw_prompts`."""
        return draw_prompts(self.task, self.seed, purpose, steps_N, slots_N, self.prompt_indices)

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
        params = self.place_params(params)
        batch = self.place(prompts, purpose, steps_N, slots_N)
        with jax.set_mesh(self.mesh):
            return self.programs.sample(params, *batch, group_size)

    def place_params(self, params: PyTree) -> PyTree:
        """Copies the learner's parameters to each device that samples, if these are others."""
        if self.learner_mesh is None:
            return params
        return jax.device_put(params, mesh_lib.replicated(self.mesh))

    def place(
        self, prompts: Prompts, purpose: int, steps_N: np.ndarray, slots_N: np.ndarray
    ) -> tuple[Prompts, jax.Array, Array, Array]:
        """Puts a batch on the devices; returns (prompts, key, steps_N, slots_N) for the sampler."""
        indices = (steps_N.astype(np.int32), slots_N.astype(np.int32))
        with jax.set_mesh(self.mesh):
            sharding = mesh_lib.batch_sharding(self.mesh)
            prompts, steps, slots = mesh_lib.put((prompts, *indices), sharding)
            return prompts, purpose_key(jax.random.key(self.seed), purpose), steps, slots

    def score(self, prompts: Prompts, responses: Responses, version: int) -> Rollout:
        """Fetches this process's rows of a batch, and returns them with their rewards."""
        rows = mesh_lib.own_rows(self.mesh, len(prompts.index_N))
        prompts = jax.tree.map(operator.itemgetter(rows), prompts)
        responses = mesh_lib.get_own_rows(responses, self.mesh)
        return self.start_scoring(prompts, responses, version).result()

    def start_scoring(self, prompts: Prompts, responses: Responses, version: int) -> PendingRollout:
        """Starts to judge responses on the host, in worker processes if there are any."""
        judge_inputs = [
            np.asarray(array)
            for array in (prompts.index_N, responses.tokens_NxGxR, responses.mask_NxGxR)
        ]
        versions = np.full(len(prompts.index_N), version, np.int32)
        rollout = Rollout(
            prompts=prompts, responses=responses, rewards_NxG=None, behavior_version_N=versions
        )
        if self.reward_pool is not None:
            samples = cast(TextTask, self.task).samples(*judge_inputs)
            return PendingRollout(rollout, self.reward_pool.submit(*samples))
        rewards_NxG, outcome_NxG = finite_rewards(
            cast(ArrayTask, self.task).rewards(*judge_inputs),
            responses.tokens_NxGxR.shape[:2],
            self.report,
        )
        rollout = dataclasses.replace(
            rollout, rewards_NxG=rewards_NxG, reward_outcome_NxG=outcome_NxG
        )
        return PendingRollout(rollout, None)


def batch_layouts(owner_W: np.ndarray, owner_N: np.ndarray) -> Iterator[np.ndarray]:
    """Assigns W pairs to batches of N rows. Each pair gets a row that its process owns.

    Pairs of one process keep their order. With one process, pairs fill one batch after the other.

    Args:
      owner_W: the process that keeps the slot of each pair.
      owner_N: the process that owns each row of a batch.

    Yields:
      For each batch, the index [N] of the pair in each row, or -1 for an empty row.
    """
    queues = [
        (np.flatnonzero(owner_W == process), np.flatnonzero(owner_N == process))
        for process in np.unique(owner_N)
    ]
    num_batches = max((-(-len(pairs) // len(rows)) for pairs, rows in queues), default=0)
    for batch_index in range(num_batches):
        pairs_N = np.full(len(owner_N), -1)
        for pairs, rows in queues:
            chosen = pairs[batch_index * len(rows) : (batch_index + 1) * len(rows)]
            pairs_N[rows[: len(chosen)]] = chosen
        yield pairs_N
