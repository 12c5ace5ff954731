"""Defines schedules, which map (learner step, group slot) to a behavior version.

A schedule's lags depend only on the arguments of its constructor. Earlier calls have no effect. So
a resumed run has the same lags as an uninterrupted run.

Learner step t updates policy version t to version t + 1. The lag of a group that step t learns from
is t - behavior version, in optimizer updates.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from staleness_grpo.errors import require, require_at_least, require_choice
from staleness_grpo.runtime.hashing import uniform_integers

STARTS = ("initial_policy", "synchronous")


def check_lag(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.lag` has a value that cannot be used."""
    require_choice(fields, "schedule", (*SCHEDULES, "trace"))
    require_choice(fields, "start", STARTS)
    require_at_least(fields, {"max_lag": 0})
    if fields["schedule"] == "trace":
        hint = "lag.schedule=trace replays a file: give the file's path"
        require(fields["trace"] is not None, "trace", hint, fields["trace"])
        hint = "the trace file sets the lags of the start too: leave lag.start at initial_policy"
        require(fields["start"] == "initial_policy", "start", hint, fields["start"])


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Gives the lag of each of N group slots at every learner step.

    Every lag is in [0, min(step, max_lag)]. A subclass defines how the lags are chosen.

    Raises:
      ValueError: `max_lag` is negative, `num_groups` is below 1, or `start` is unknown.
    """

    max_lag: int  # S
    num_groups: int  # N
    seed: int = 0
    # Sets the lags of steps below S. "initial_policy": the scheduled lags, but no version before 0.
    # "synchronous": lag 0. `Minibatched` applies this to the first step of each rollout batch.
    start: str = "initial_policy"

    def __post_init__(self):
        if self.max_lag < 0 or self.num_groups < 1:
            given = f"{self.max_lag} and {self.num_groups}"
            raise ValueError(f"need max_lag >= 0 and num_groups >= 1, got {given}")
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {self.start!r}")

    @abc.abstractmethod
    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        """Returns the lags [I, N] or [I, 1] of these steps. No lag reaches below version 0."""

    def lags(self, steps_I: np.ndarray) -> np.ndarray:
        """Returns the lags [I, N], int64, of every slot of these learner steps."""
        steps_Ix1 = np.asarray(steps_I, np.int64)[:, None]
        lags = self._scheduled_lags(steps_Ix1)
        if self.start == "synchronous":
            lags = np.where(steps_Ix1 < self.max_lag, 0, lags)
        return np.broadcast_to(lags, (len(steps_Ix1), self.num_groups))

    def behavior_versions(self, step: int) -> np.ndarray:
        """Returns the policy versions [N], int32, that generate the groups of this learner step."""
        return (step - self.lags(np.array([step]))[0]).astype(np.int32)

    def due(self, version: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the groups that this policy version must generate.

        This function is the inverse of `behavior_versions`.

        Args:
          version: a policy version, which is also the learner step that is about to run.
          num_steps: number of learner steps in the run. No group is generated for a later step.

        Returns:
          (steps_W, slots_W), int64: learner step and slot of each group, sorted by step and then by
          slot.
        """
        steps_I = np.arange(version, min(version + self.max_lag + 1, num_steps))
        rows_W, slots_W = np.nonzero(self.lags(steps_I) == (steps_I - version)[:, None])
        return steps_I[rows_W], slots_W


class Constant(Schedule):
    """A schedule in which every lag is S. In the first S steps the lag is the step itself."""

    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        return np.minimum(steps_Ix1, self.max_lag)


class Cyclic(Schedule):
    """A schedule in which a snapshot generates all rollouts and is refreshed every S steps.

    The lags are 0, 1, ..., S - 1, 0, 1, ... So S = 0 and S = 1 both give synchronous training.
    """

    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        return steps_Ix1 % max(self.max_lag, 1)


class Uniform(Schedule):
    """A schedule that draws each (step, slot) lag independently, uniform on 0..min(step, S)."""

    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        bound = np.minimum(steps_Ix1, self.max_lag) + 1
        return uniform_integers(bound, self.seed, steps_Ix1, np.arange(self.num_groups))


@dataclasses.dataclass(frozen=True)
class Minibatched(Schedule):
    """A schedule that cuts each rollout batch into minibatches for consecutive learner steps.

    A batch has `updates_per_batch * num_groups` groups. The schedule `batches` gives their lags at
    the batch's first step. A minibatch that is used i steps later has lags that are
    larger by i. So no lag exceeds S if no lag of `batches` exceeds S - (updates_per_batch - 1).
    """

    batches: Schedule = dataclasses.field(kw_only=True)
    updates_per_batch: int = dataclasses.field(kw_only=True)

    def lags(self, steps_I: np.ndarray) -> np.ndarray:
        """Returns the lags [I, N], int64, of every slot of these learner steps."""
        steps_I = np.asarray(steps_I, np.int64)
        minibatch_Ix1 = (steps_I % self.updates_per_batch)[:, None]
        slots_IxN = minibatch_Ix1 * self.num_groups + np.arange(self.num_groups)
        batch_lags = self.batches.lags(steps_I - minibatch_Ix1[:, 0])  # [I, the whole batch's N]
        return np.take_along_axis(batch_lags, slots_IxN, axis=1) + minibatch_Ix1

    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        return self.lags(steps_Ix1[:, 0])


SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "cyclic": Cyclic, "uniform": Uniform}


def make_schedule(
    name: str,
    max_lag: int,
    num_groups: int,
    seed: int = 0,
    start: str = "initial_policy",
    updates_per_batch: int = 1,
) -> Schedule:
    """Makes the schedule that `lag.schedule` names, for rollout batches of `num_groups` groups.

    Args:
      name: a key of SCHEDULES.
      max_lag: S, the bound of every lag.
      num_groups: number of groups in a rollout batch.
      seed: the seed of random lags.
      start: one of STARTS, see Schedule.
      updates_per_batch: number of learner steps that share a rollout batch.

    Raises:
      ValueError: `name` or `start` is unknown, `max_lag` is negative, `updates_per_batch` does not
        divide the batch, or `max_lag` is below updates_per_batch - 1. The last learner step of a
        batch has at least that lag.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {name!r}")
    if updates_per_batch == 1:
        return SCHEDULES[name](max_lag, num_groups, seed, start)
    if num_groups % updates_per_batch or max_lag < updates_per_batch - 1:
        raise ValueError(
            f"updates_per_batch={updates_per_batch} must divide num_groups={num_groups} "
            f"and be at most max_lag + 1, with max_lag={max_lag}"
        )
    batches = SCHEDULES[name](max_lag - updates_per_batch + 1, num_groups, seed, start)
    minibatch_groups = num_groups // updates_per_batch
    return Minibatched(
        max_lag, minibatch_groups, seed, start, batches=batches, updates_per_batch=updates_per_batch
    )
