"""Lag schedules: the deterministic map (learner step, group slot) -> behavior version.

A schedule is a pure function of its constructor's arguments: nothing depends on which steps were asked for
before, so a resumed run sees the lags of an uninterrupted one. Learner step t updates policy version t to
t + 1; a group trained on at step t has lag t - behavior version, in optimizer updates.
"""

import abc
import dataclasses

import numpy as np

from staleness_grpo.hashing import uniform_integers

STARTS = ("initial_policy", "synchronous")


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Lags of N group slots, each in [0, min(step, max_lag)]: a subclass says how they are drawn."""

    max_lag: int  # S
    num_groups: int  # N
    seed: int = 0
    start: str = "initial_policy"  # before step S, only versions that exist; "synchronous": lag 0 there

    def __post_init__(self):
        if self.max_lag < 0 or self.num_groups < 1:
            raise ValueError(f"need max_lag >= 0 and num_groups >= 1, got {self.max_lag} and {self.num_groups}")
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {self.start!r}")

    @abc.abstractmethod
    def _scheduled_lags(self, steps_Kx1: np.ndarray) -> np.ndarray:
        """Lags [K, N] or [K, 1] of these steps, given that version 0 is the oldest there is."""

    def lags(self, steps_K: np.ndarray) -> np.ndarray:
        """Lags [K, N], int64, of every slot of these learner steps."""
        steps_Kx1 = np.asarray(steps_K, np.int64)[:, None]
        lags = self._scheduled_lags(steps_Kx1)
        if self.start == "synchronous":
            lags = np.where(steps_Kx1 < self.max_lag, 0, lags)
        return np.broadcast_to(lags, (len(steps_Kx1), self.num_groups))

    def behavior_versions(self, step: int) -> np.ndarray:
        """The policy version [N], int32, that generates each group of this learner step."""
        return (step - self.lags(np.array([step]))[0]).astype(np.int32)

    def due(self, version: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """All that this policy version must generate: the inverse of `behavior_versions`.

        Args:
          version: a policy version, i.e. the learner step that is about to run.
          num_steps: learner steps of the run; later ones are not generated for.

        Returns:
          (steps_K, slots_K), int64: learner step and slot of each group, by step and then by slot.
        """
        steps = np.arange(version, min(version + self.max_lag + 1, num_steps))
        rows, slots_K = np.nonzero(self.lags(steps) == (steps - version)[:, None])
        return steps[rows], slots_K


class Constant(Schedule):
    """Lag S at every step, min(step, S) at the start."""

    def _scheduled_lags(self, steps_Kx1):
        return np.minimum(steps_Kx1, self.max_lag)


class Cyclic(Schedule):
    """A snapshot refreshed every S steps: lags 0, 1, ..., S - 1, 0, ... S = 0 and S = 1 are synchronous."""

    def _scheduled_lags(self, steps_Kx1):
        return steps_Kx1 % max(self.max_lag, 1)


class Uniform(Schedule):
    """Lags independent over (step, slot) and uniform on 0..min(step, S)."""

    def _scheduled_lags(self, steps_Kx1):
        bound = np.minimum(steps_Kx1, self.max_lag) + 1
        return uniform_integers(bound, self.seed, steps_Kx1, np.arange(self.num_groups))


@dataclasses.dataclass(frozen=True)
class Minibatched(Schedule):
    """Rollout batches of K num_groups groups, cut into K minibatches for K consecutive learner steps.

    A whole batch is generated as `batches` says for its first step; the minibatch of its k-th step is k updates
    older. So S bounds every lag when that of `batches` is S - (K - 1).
    """

    batches: Schedule = dataclasses.field(kw_only=True)
    updates_per_batch: int = dataclasses.field(kw_only=True)  # K

    def lags(self, steps_K: np.ndarray) -> np.ndarray:
        """Lags [K, N], int64, of every slot of these learner steps."""
        steps_K = np.asarray(steps_K, np.int64)
        place_Kx1 = (steps_K % self.updates_per_batch)[:, None]
        slots_KxN = place_Kx1 * self.num_groups + np.arange(self.num_groups)
        return np.take_along_axis(self.batches.lags(steps_K - place_Kx1[:, 0]), slots_KxN, axis=1) + place_Kx1

    def _scheduled_lags(self, steps_Kx1):
        return self.lags(steps_Kx1[:, 0])


SCHEDULES: dict[str, type[Schedule]] = {"constant": Constant, "cyclic": Cyclic, "uniform": Uniform}


def make_schedule(
    name: str, max_lag: int, num_groups: int, seed: int = 0, start: str = "initial_policy", updates_per_batch: int = 1
) -> Schedule:
    """The schedule `lag.schedule` names, for rollout batches of `num_groups` groups.

    Raises:
      ValueError: on an unknown name or start, a negative lag, a batch that `updates_per_batch` does not divide, or a
        max_lag below updates_per_batch - 1, the age that a batch reaches while it is learned from.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {name!r}")
    if updates_per_batch == 1:
        return SCHEDULES[name](max_lag, num_groups, seed, start)
    if num_groups % updates_per_batch or max_lag < updates_per_batch - 1:
        raise ValueError(
            f"updates_per_batch={updates_per_batch} must divide num_groups={num_groups} and be at most max_lag + 1, "
            f"with max_lag={max_lag}"
        )
    batches = SCHEDULES[name](max_lag - updates_per_batch + 1, num_groups, seed, start)
    minibatch = num_groups // updates_per_batch
    return Minibatched(max_lag, minibatch, seed, start, batches=batches, updates_per_batch=updates_per_batch)
