"""Builds a run, which holds its config, its parts, and the arrays that change during training.

`assemble_run` makes a run from a config and a task. `Run.snapshot` returns everything that changes
from one learner step to the next, and `Run.restore` puts a snapshot back. Checkpoints use only
these two.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError
from staleness_grpo.policy.configured import as_decoder
from staleness_grpo.policy.huggingface.config import ModelFolderError
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.staleness import trace
from staleness_grpo.staleness.ring_buffer import RingBuffer
from staleness_grpo.staleness.schedule import Schedule, make_schedule
from staleness_grpo.tasks.base import Task, TextTask
from staleness_grpo.training import learner
from staleness_grpo.training.diagnostics import copied
from staleness_grpo.training.drift import ParameterDrift, make_drift
from staleness_grpo.training.heldout import HeldOut, make_heldout, split
from staleness_grpo.training.programs import Programs, make_programs
from staleness_grpo.training.rewards import RewardPool
from staleness_grpo.training.rollouts import Generator, PendingRollout, Watch, watch_nothing
from staleness_grpo.training.warm_start import warm_start
from staleness_grpo.types import LearnerState, PyTree, Rollout


@dataclasses.dataclass(frozen=True)
class Groups:
    """Holds unread groups of a ring buffer. Slots are numbered over all processes."""

    steps_W: np.ndarray  # the learner step that reads each group
    slots_W: np.ndarray  # the slot of each group
    versions_W: np.ndarray  # the policy version that generated each group
    rollout: Rollout | None  # leaves [W, ...]; None if nothing was ever generated


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Holds the state of a run before learner step `step`: everything that training changes."""

    step: int
    arrays: dict[str, PyTree]  # the result of `Run.arrays`
    drift_versions: tuple[int, ...]
    buffer: RingBuffer
    own_slots: np.ndarray

    def groups(self) -> Groups:
        """Returns the unread groups of this process's buffer."""
        steps_W, places_W, versions_W, rollout = self.buffer.unread()
        return Groups(steps_W, self.own_slots[places_W], versions_W, rollout)


@dataclasses.dataclass
class Run:
    """Holds a run's config and its parts. Training changes the fields from `buffer` on."""

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
    heldout: HeldOut | None = None
    reference_params: PyTree | None = None  # of the reference policy; None without a penalty
    step: int = 0  # the next learner step
    # (steps, slots, behavior version, groups) of groups that are not judged yet. No group is left
    # here when a snapshot is made.
    unjudged: list[tuple[np.ndarray, np.ndarray, int, PendingRollout]] = dataclasses.field(
        default_factory=list
    )
    watch: Watch = watch_nothing  # is called when a part of a step ends

    @property
    def own_slots(self) -> np.ndarray:
        """Returns the group slots that this process keeps, in order."""
        return mesh_lib.own_rows(self.mesh, self.schedule.num_groups)

    def with_reference(self, batch: Rollout) -> Rollout:
        """Returns a batch with the reference policy's log-probabilities, if there is a penalty."""
        score = self.programs.reference_logprobs
        if score is None:
            return batch
        logprobs = score(self.reference_params, batch)
        return dataclasses.replace(batch, reference_logprobs_NxGxR=logprobs)

    def watch_with(self, watch: Watch) -> None:
        """Sets the function that is called with name and arrays when a part of a step ends."""
        self.watch = watch
        self.generator = dataclasses.replace(self.generator, watch=watch)

    def push_judged(self, needed: int) -> None:
        """Pushes judged groups into the buffer, and waits for the groups of steps <= needed."""
        waiting = []
        for steps, slots, version, pending in self.unjudged:
            if pending.ready() or steps.min() <= needed:
                places = np.searchsorted(self.own_slots, slots)
                self.buffer.push(steps, places, version, pending.result())
            else:
                waiting.append((steps, slots, version, pending))
        self.unjudged = waiting

    def drift_versions(self) -> tuple[int, ...]:
        """Returns the policy versions whose parameters are stored to measure drift, in order."""
        return () if self.drift is None else tuple(sorted(self.drift.versions))

    def arrays(self) -> dict[str, PyTree]:
        """Returns all arrays on the devices that training changes.

        Returns:
          `state`: the learner state.
          `drift_start`: the start parameters, if drift is measured.
          `drift_versions`: a list of the stored versions, in the order of the versions.
            Absent if drift is not measured or no version is stored.
          `proximal_params`: the proximal policy's parameters, with several updates per batch.
        """
        arrays: dict[str, PyTree] = {"state": self.state}
        if self.drift is not None:
            arrays["drift_start"] = self.drift.start
            if self.drift.versions:
                arrays["drift_versions"] = [self.drift.versions[v] for v in self.drift_versions()]
        if self.programs.proximal_logprobs is not None:
            is_unset = self.proximal_params is None
            arrays["proximal_params"] = self.state.params if is_unset else self.proximal_params
        return arrays

    def snapshot(self) -> Snapshot:
        """Returns a snapshot of the run between two learner steps, after all groups are judged.

        The snapshot has a copy of the learner state, because the next update donates the state. The
        device makes the copy, and the host does not wait for it.
        """
        self.push_judged(needed=self.config.steps)
        arrays = self.arrays()
        arrays["state"] = copied(arrays["state"])
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
        """Restores a snapshot into a run that was just built from the same config.

        Args:
          step: the next learner step.
          arrays: the arrays of the snapshot, on this run's devices.
          drift_versions: the policy versions of the entries in `arrays["drift_versions"]`.
          groups: unread groups of any processes. Only groups in this process's slots are used. The
            ring buffer checks their lags again.
        """
        self.state, self.step = arrays["state"], step
        if self.drift is not None:
            self.drift.start = arrays["drift_start"]
            stored_params = arrays.get("drift_versions", [])
            self.drift.versions = dict(zip(drift_versions, stored_params, strict=True))
        self.proximal_params = arrays.get("proximal_params")
        for waiting in groups:
            own_W = np.isin(waiting.slots_W, self.own_slots)
            places_W = np.searchsorted(self.own_slots, waiting.slots_W)
            for version in np.unique(waiting.versions_W[own_W]):
                is_chosen_W = own_W & (waiting.versions_W == version)
                rollout = jax.tree.map(lambda leaf, rows=is_chosen_W: leaf[rows], waiting.rollout)
                self.buffer.push(
                    waiting.steps_W[is_chosen_W], places_W[is_chosen_W], int(version), rollout
                )

    def close(self) -> None:
        """Ends the worker processes that judge rewards."""
        if self.generator.reward_pool is not None:
            self.generator.reward_pool.close()


def assemble_run(
    config: ConfigDict,
    task: Task,
    must_stop: Callable[[], bool] = lambda: False,
    params: PyTree | None = None,
) -> Run:
    """Builds the run of a config that was validated with this task; see `config.build.build_run`.

    Args:
      config: the validated config.
      task: the task that `config.task` names or describes.
      must_stop: is asked during a warm start whether to stop.
      params: the start parameters; None for those that the config describes.

    Raises:
      FieldError: the weights of `policy.checkpoint` cannot be used. Validation does not read the
        weights.
      Stopped: `must_stop` returned True.
    """
    mesh = mesh_lib.make_mesh(**config.mesh.to_dict())
    programs = make_programs(config, task)
    try:
        if params is None:
            params = starting_params(programs, config, mesh, must_stop)
    except ModelFolderError as error:
        checkpoint = config.policy.checkpoint
        raise FieldError("policy.checkpoint", str(error), checkpoint) from error
    key = jax.random.key(config.seed)
    state = learner.init_state(programs.policy, programs.make_optimizer(None), mesh, key, params)
    reference_params = _reference_params(programs, config, mesh, state)
    judge_pool = reward_pool(task, config)
    _report_dropped(task, config.task.get("path"))
    schedule = lag_schedule(config)
    fraction = config.heldout.fraction
    num_samplers = config.sampler.devices
    generator = Generator(
        programs,
        mesh_lib.make_mesh(data=num_samplers) if num_samplers else mesh,
        config.seed,
        num_prompts=config.num_prompts,
        group_size=config.group_size,
        updates_per_batch=config.updates_per_batch,
        batch_prompts=config.sampler.batch_prompts,
        reward_pool=judge_pool,
        learner_mesh=mesh if num_samplers else None,
        prompt_indices=split(task, fraction)[0] if fraction else None,
    )
    heldout = make_heldout(config, generator)
    if heldout is not None and config.heldout.path is not None:
        _report_dropped(heldout.generator.task, config.heldout.path)
    return Run(
        config=config,
        mesh=mesh,
        programs=programs,
        generator=generator,
        heldout=heldout,
        schedule=schedule,
        update=programs.compiled_update(state, mesh),
        buffer=RingBuffer(schedule.max_lag, len(mesh_lib.own_rows(mesh, schedule.num_groups))),
        drift=make_drift(config, state.params),
        state=state,
        reference_params=reference_params,
    )


def _reference_params(
    programs: Programs, config: ConfigDict, mesh: Mesh, state: LearnerState
) -> PyTree | None:
    """Returns the parameters of the reference policy; None without a penalty.

    A resumed run makes them again, so checkpoints do not contain them.

    Raises:
      FieldError: the folder of the reference policy cannot be used.
    """
    if programs.reference_logprobs is None:
        return None
    folder = config.reference.checkpoint
    if folder is None:
        return copied(state.params)  # the update donates the state
    from staleness_grpo.policy import huggingface

    try:
        return huggingface.load_params(folder, as_decoder(programs.policy), mesh)
    except ModelFolderError as error:
        raise FieldError("reference.checkpoint", str(error), folder) from error


def reward_pool(task: Task, config: ConfigDict) -> RewardPool | None:
    """Makes the pool of worker processes for a text task; None for a task that judges arrays.

    Raises:
      FieldError: the task's verifier cannot be sent to another process.
    """
    if not isinstance(task, TextTask):
        return None
    try:
        return RewardPool(task.verify, **config.rewards)
    except FieldError as error:
        raise error.below("task") from error


def _report_dropped(task: Task, path: str | None) -> None:
    """Prints how many problems a task has left out because of their length, if any.

    Args:
      task: the task.
      path: the file that its problems are from, if there is one.
    """
    num_dropped = getattr(task, "num_dropped", 0)
    if not num_dropped or jax.process_index() > 0:
        return
    limit = getattr(task, "max_prompt_length", None)
    total = num_dropped + task.num_prompts
    reason = f"their prompts have more than task.max_prompt_length={limit} tokens"
    source = "" if path is None else f" of {path}"
    print(f"{num_dropped} of {total} problems{source} are left out: {reason}", file=sys.stderr)


def starting_params(
    programs: Programs, config: ConfigDict, mesh: Mesh, must_stop: Callable[[], bool]
) -> PyTree | None:
    """Returns the start parameters of a run: the checkpoint's, or else the warm start's.

    The checkpoint's parameters are sharded. The result is None if the run has neither a checkpoint
    nor a warm start. It then starts from random parameters. During a warm start, `must_stop` is
    asked whether to stop.
    """
    if config.policy.checkpoint is not None:
        from staleness_grpo.policy import huggingface

        decoder = as_decoder(programs.policy)
        return huggingface.load_params(config.policy.checkpoint, decoder, mesh)
    if not config.warm_start.steps:
        return None
    return warm_start(programs.policy, programs.task, config, must_stop)


def lag_schedule(config: ConfigDict) -> Schedule:
    """Returns the schedule that `config.lag` describes, which may be a recorded trace."""
    lag, num_groups = config.lag, config.num_prompts
    if lag.schedule == "trace":
        size: dict[str, Any] = dict(
            num_steps=config.steps, num_groups=num_groups, max_lag=lag.max_lag
        )
        return trace.Trace(lag.max_lag, num_groups, lags_IxN=trace.read(lag.trace, **size))
    return make_schedule(
        lag.schedule, lag.max_lag, num_groups, config.seed, lag.start, config.updates_per_batch
    )
