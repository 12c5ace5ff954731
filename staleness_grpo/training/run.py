"""Builds a run: its config, its parts, and the arrays that change as it goes.

`build_run` makes a run from a config. `Run.snapshot` and `Run.restore` are all that a checkpoint
needs: nothing else of a run changes from one learner step to the next.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError
from staleness_grpo.policy.huggingface.config import ModelFolderError
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.staleness import trace
from staleness_grpo.staleness.ring_buffer import RingBuffer
from staleness_grpo.staleness.schedule import Schedule, make_schedule
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task, TextTask
from staleness_grpo.training import learner
from staleness_grpo.training.diagnostics import ParameterDrift
from staleness_grpo.training.programs import Programs, make_programs
from staleness_grpo.training.rewards import RewardPool
from staleness_grpo.training.rollouts import Generator, PendingRollout, Watch, watch_nothing
from staleness_grpo.training.warm_start import warm_start
from staleness_grpo.types import LearnerState, PyTree, Rollout


@dataclasses.dataclass(frozen=True)
class Groups:
    """Holds unread groups of a ring buffer, with their slots among those of all processes."""

    steps_W: np.ndarray  # the learner step that reads each group
    slots_W: np.ndarray
    versions_W: np.ndarray  # the policy version that generated it
    rollout: Rollout | None  # leaves [W, ...]; None if nothing was ever generated


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Holds all that changes as a run goes, as it was before learner step `step`."""

    step: int
    arrays: dict[str, PyTree]  # as `Run.arrays` gives them
    drift_versions: tuple[int, ...]
    buffer: RingBuffer
    own_slots: np.ndarray

    def groups(self) -> Groups:
        """Returns the groups that wait in this process's buffer."""
        steps_W, places_W, versions_W, rollout = self.buffer.unread()
        return Groups(steps_W, self.own_slots[places_W], versions_W, rollout)


@dataclasses.dataclass
class Run:
    """Holds the config of a run and its parts; those from `buffer` on change as it goes."""

    config: ConfigDict
    mesh: Mesh
    programs: Programs
    generator: Generator
    schedule: Schedule
    update: Callable[[LearnerState, Rollout], tuple[LearnerState, dict]]
    buffer: RingBuffer
    drift: ParameterDrift | None
    state: LearnerState
    proximal_params: PyTree | None = None
    step: int = 0  # the learner step that is next
    # (steps, slots, behavior version, groups) whose rewards are on their way; empty in a snapshot.
    unjudged: list[tuple[np.ndarray, np.ndarray, int, PendingRollout]] = dataclasses.field(
        default_factory=list
    )
    watch: Watch = watch_nothing  # is told of each part of a step as it ends

    @property
    def own_slots(self) -> np.ndarray:
        """Returns the group slots that this process keeps, in order; all of them if alone."""
        return mesh_lib.own_rows(self.mesh, self.schedule.num_groups)

    def watch_with(self, watch: Watch) -> None:
        """Has `watch` told of each part of a step as it ends, by its name and with its arrays."""
        self.watch = watch
        self.generator = dataclasses.replace(self.generator, watch=watch)

    def push_judged(self, needed: int) -> None:
        """Buffers the groups that have their rewards; waits for those of steps <= needed."""
        waiting = []
        for steps, slots, version, pending in self.unjudged:
            if pending.ready() or steps.min() <= needed:
                places = np.searchsorted(self.own_slots, slots)
                self.buffer.push(steps, places, version, pending.result())
            else:
                waiting.append((steps, slots, version, pending))
        self.unjudged = waiting

    def drift_versions(self) -> tuple[int, ...]:
        """Returns the policy versions whose parameters are kept to measure drift, in order."""
        return () if self.drift is None else tuple(sorted(self.drift.versions))

    def arrays(self) -> dict[str, PyTree]:
        """Returns every array on the devices that changes as the run goes.

        `state` is always there. `drift_start` and `drift_versions` (a list, by version, absent
        while empty) are there if drift is measured, `proximal_params` with several updates per
        batch.
        """
        arrays: dict[str, PyTree] = {"state": self.state}
        if self.drift is not None:
            arrays["drift_start"] = self.drift.start
            if self.drift.versions:
                arrays["drift_versions"] = [self.drift.versions[v] for v in self.drift_versions()]
        if self.programs.proximal_logprobs is not None:
            unset = self.proximal_params is None
            arrays["proximal_params"] = self.state.params if unset else self.proximal_params
        return arrays

    def snapshot(self) -> Snapshot:
        """Returns the run as it stands between two learner steps, every reward of it waited for.

        The device copies the state, which the next update donates; the host does not wait for it.
        """
        self.push_judged(needed=self.config.steps)
        arrays = self.arrays()
        arrays["state"] = _copied(arrays["state"])
        if self.programs.proximal_logprobs is not None and self.proximal_params is None:
            arrays["proximal_params"] = arrays["state"].params
        return Snapshot(
            self.step, arrays, self.drift_versions(), self.buffer.copy(), self.own_slots
        )

    def restore(
        self,
        step: int,
        arrays: dict[str, PyTree],
        drift_versions: tuple[int, ...],
        groups: list[Groups],
    ) -> None:
        """Puts a snapshot back into a run that was just built from the same config.

        Args:
          step: the learner step that is next.
          arrays: as from `arrays`, on this run's devices.
          drift_versions: the versions of `arrays["drift_versions"]`.
          groups: unread groups of any processes; those of this process's slots are taken. The ring
            buffer asserts their lags again.
        """
        self.state, self.step = arrays["state"], step
        if self.drift is not None:
            self.drift.start = arrays["drift_start"]
            kept = arrays.get("drift_versions", [])
            self.drift.versions = dict(zip(drift_versions, kept, strict=True))
        self.proximal_params = arrays.get("proximal_params")
        for waiting in groups:
            own_W = np.isin(waiting.slots_W, self.own_slots)
            places_W = np.searchsorted(self.own_slots, waiting.slots_W)
            for version in np.unique(waiting.versions_W[own_W]):
                chosen = own_W & (waiting.versions_W == version)
                rollout = jax.tree.map(lambda leaf, rows=chosen: leaf[rows], waiting.rollout)
                self.buffer.push(waiting.steps_W[chosen], places_W[chosen], int(version), rollout)

    def close(self) -> None:
        """Ends the processes that judge rewards."""
        if self.generator.reward_pool is not None:
            self.generator.reward_pool.close()


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def build_run(config: ConfigDict, task: Task | None = None) -> Run:
    """Builds a run from a validated config: mesh, task, policy, optimizer, schedule.

    Args:
      config: a config with the fields of `config.defaults.default_config`.
      task: a task of your own, in place of the one that `config.task` names. Set
        `config.warm_start.steps` to 0 with it, unless it has the corpus of a warm start.

    Raises:
      FieldError: for what only reading a checkpoint's weights can show.
    """
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict())
    if task is None:
        task = make_task(config.task, config.policy.checkpoint)
    programs = make_programs(config, task)
    try:
        params = starting_params(programs, config, mesh)
    except ModelFolderError as error:
        checkpoint = config.policy.checkpoint
        raise FieldError("policy.checkpoint", str(error), checkpoint) from error
    key = jax.random.key(config.seed)
    state = learner.init_state(programs.policy, programs.make_optimizer(None), mesh, key, params)
    pool = reward_pool(task, config)
    schedule = lag_schedule(config)
    return Run(
        config=config,
        mesh=mesh,
        programs=programs,
        generator=Generator(
            programs,
            mesh,
            config.seed,
            num_prompts=config.num_prompts,
            group_size=config.group_size,
            updates_per_batch=config.updates_per_batch,
            reward_pool=pool,
        ),
        schedule=schedule,
        update=programs.compiled_update(state, mesh),
        buffer=RingBuffer(schedule.max_lag, len(mesh_lib.own_rows(mesh, schedule.num_groups))),
        drift=(
            ParameterDrift(state.params, schedule.max_lag)
            if config.metrics.parameter_drift
            else None
        ),
        state=state,
    )


def reward_pool(task: Task, config: ConfigDict) -> RewardPool | None:
    """Makes the processes that judge a text task; None for a task that judges arrays.

    Raises:
      FieldError: the task's verifier cannot be sent to another process.
    """
    if not isinstance(task, TextTask):
        return None
    try:
        return RewardPool(task.verify, **config.rewards)
    except FieldError as error:
        raise error.below("task") from error


def starting_params(programs: Programs, config: ConfigDict, mesh: Mesh) -> PyTree | None:
    """Returns the parameters that a run starts from; None for random ones.

    They are the checkpoint's, sharded, if there is one, and otherwise the warm start's.
    """
    if config.policy.checkpoint is not None:
        from staleness_grpo.policy import huggingface

        return huggingface.load_params(config.policy.checkpoint, programs.policy, mesh)
    return warm_start(programs.policy, programs.task, config) if config.warm_start.steps else None


def lag_schedule(config: ConfigDict) -> Schedule:
    """Returns the schedule that `config.lag` names, a trace among them."""
    lag, num_groups = config.lag, config.num_prompts
    if lag.schedule == "trace":
        size: dict[str, Any] = dict(
            num_steps=config.steps, num_groups=num_groups, max_lag=lag.max_lag
        )
        return trace.Trace(lag.max_lag, num_groups, lags_IxN=trace.read(lag.trace, **size))
    return make_schedule(
        lag.schedule, lag.max_lag, num_groups, config.seed, lag.start, config.updates_per_batch
    )
