"""Generates groups in a thread, on devices of its own, while the learner trains.

The generator answers calls in a fixed order. A call is `batch_prompts` neighboring slots of one
learner step. When a call starts, it gets the policy version that the admission allows, and that
choice is reported. The choice is all that depends on timing. Noise belongs to (seed, step, slot),
and the synchronous loop cuts the groups of a version into the same calls, in the same order. So
the recorded choices, replayed as a trace, give the same run to the byte.

Two threads share the fields of `BackgroundGenerator` under one condition variable:

  learner    publishes version t before step t, then waits for the groups of step t.
  generator  waits for an admitted version, answers a call, and puts the groups aside.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.staleness.admission import admitted_version
from staleness_grpo.staleness.trace import Trace
from staleness_grpo.training.rollouts import PendingRollout
from staleness_grpo.training.run import Run
from staleness_grpo.types import PyTree

# Is called in the generator's thread when a call starts: (step, slots, behavior version).
ReportStart = Callable[[int, np.ndarray, int], None]


class Call(NamedTuple):
    """Names the groups that the generator samples at once."""

    step: int
    slots: np.ndarray


class Answer(NamedTuple):
    """Holds the groups of one call."""

    call: Call
    version: int
    groups: PendingRollout
    seconds: float  # from the start of the call to its end


def num_devices(config: ConfigDict) -> tuple[int, int]:
    """Returns how many devices the learner and the generator need."""
    mesh = config.mesh
    size = mesh.data * mesh.fsdp * mesh.tensor
    return size, config.asynchronous.generator_devices or size


def generator_mesh(config: ConfigDict) -> Mesh:
    """Returns the mesh of the generator, of the devices after those of the learner.

    It has the learner's shape, or else all its devices split the batch. Only with the learner's
    shape does a replay compute the same bytes.

    Raises:
      ValueError: there are too few devices.
    """
    size, count = num_devices(config)
    shape = config.mesh.to_dict() if count == size else {"data": count}
    return mesh_lib.make_mesh(**shape, devices=jax.devices()[size:])


def list_calls(config: ConfigDict) -> list[Call]:
    """Returns the calls of a run in their order."""
    at_once = config.sampler.batch_prompts
    at_once = config.num_prompts if at_once is None else at_once
    return [
        Call(step, np.arange(start, start + at_once))
        for step in range(config.steps)
        for start in range(0, config.num_prompts, at_once)
    ]


class BackgroundGenerator:
    """A source of groups for `loop.train`, whose generator runs at the same time as the learner.

    Used as a context manager, it starts and ends the generator's thread. It replaces the schedule
    of the run by one that has the lags of the groups that have arrived.

    Args:
      run: a run, new or restored. Its unread groups must be those of the next calls.
      report_start: is called when a call starts, unless its version is given.
      given_versions: versions of calls that an earlier process has started, by the place of the
        call in `list_calls`. They get these versions again, so that a run that was killed goes on
        as it did before.
    """

    def __init__(
        self, run: Run, report_start: ReportStart, given_versions: Mapping[int, int] | None = None
    ):
        config = run.config
        self._generator = dataclasses.replace(run.generator, mesh=generator_mesh(config))
        self._admission = config.asynchronous.admission
        self._max_lag, self._report_start = config.lag.max_lag, report_start
        self._calls, self._given = list_calls(config), dict(given_versions or {})
        self._lags_IxN = np.full((config.steps, config.num_prompts), -1, np.int64)
        steps_W, places_W, versions_W, _ = run.buffer.unread()
        self._lags_IxN[steps_W, places_W] = steps_W - versions_W
        run.schedule = Trace(self._max_lag, config.num_prompts, lags_IxN=self._lags_IxN)
        self._shardings = mesh_lib.parameter_shardings(run.state.params, self._generator.mesh)

        # The fields below belong to both threads.
        self._changed = threading.Condition()
        self._next = num_answered(run)  # the place of the next call
        self._newest = -1  # the newest version that is published
        self._params: dict[int, PyTree] = {}  # of published versions that a call may still need
        self._answers: list[Answer] = []  # that the learner has not taken yet
        self._is_answering = self._is_settling = self._must_end = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)

    def __enter__(self) -> "BackgroundGenerator":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the thread after the call that it is in."""
        with self._changed:
            self._must_end = True
            self._changed.notify_all()
        self._thread.join()

    def provide(self, run: Run, step: int) -> dict[str, float]:
        """Publishes the run's parameters as version `step`, and waits for the groups of this step.

        Returns:
          `time_waiting`: seconds that the learner waited for groups.
          `time_generation`: seconds that the generator took for the groups that were awaited or
            had arrived since the last step.
        """
        if run.drift and self._max_lag:
            run.drift.remember(step, run.state.params)
        self._publish(step, run.state.params)
        start, generation = time.perf_counter(), 0.0
        while True:
            generation += self._take(run)
            if self._lags_IxN[step].min() >= 0:
                break
            with self._changed:
                self._changed.wait_for(lambda: self._answers or self._error)
        run.push_judged(needed=step)
        return {"time_waiting": time.perf_counter() - start, "time_generation": generation}

    def settle(self, run: Run) -> None:
        """Waits until only versions from `run.step` on can start calls, and takes the answers.

        A snapshot then has all groups of older versions, whose parameters it lacks. A new call
        starts only after the next version is published.
        """
        with self._changed:
            self._is_settling = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error or not (self._is_answering or self._admitted() is not None)
            )
        self._take(run)

    def _publish(self, version: int, params: PyTree) -> None:
        """Copies parameters to the generator's devices, and lets calls start with them.

        The learner waits for its update first. Otherwise a call would start with parameters that
        are not computed yet, and wait in place of starting with the version before.
        """
        copies = jax.device_put(jax.block_until_ready(params), self._shardings)
        jax.block_until_ready(copies)
        with self._changed:
            self._params[version], self._newest, self._is_settling = copies, version, False
            self._forget()
            self._changed.notify_all()

    def _take(self, run: Run) -> float:
        """Moves all answers into the run, and returns the seconds that they took."""
        with self._changed:
            if self._error is not None:
                raise self._error
            answers, self._answers = self._answers, []
        for (step, slots), version, groups, _ in answers:
            self._lags_IxN[step, slots] = step - version
            run.unjudged.append((np.full(len(slots), step), slots, version, groups))
        return sum(answer.seconds for answer in answers)

    def _work(self) -> None:
        """Answers calls until there are none, or the thread must end."""
        try:
            while (started := self._start_call()) is not None:
                call, version, params = started
                start = time.perf_counter()
                steps = np.full(len(call.slots), call.step)
                ((_, _, groups),) = self._generator.generate(params, version, steps, call.slots)
                seconds = time.perf_counter() - start
                with self._changed:
                    self._answers.append(Answer(call, version, groups, seconds))
                    self._is_answering = False
                    self._changed.notify_all()
        except BaseException as error:  # the learner raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _start_call(self) -> tuple[Call, int, PyTree] | None:
        """Waits until a call may start; returns it with its version, or None at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._must_end or self._next == len(self._calls) or self._admitted() is not None
                )
            )
            version = self._admitted()
            if self._must_end or version is None:
                return None
            call, is_given = self._calls[self._next], self._next in self._given
            params = self._params[version]
            self._next += 1
            self._is_answering = True
            self._forget()
        if not is_given:
            self._report_start(call.step, call.slots, version)
        return call, version, params

    def _admitted(self) -> int | None:
        """Returns the version with which the next call may start now; None if it has to wait."""
        if self._next == len(self._calls):
            return None
        if self._next in self._given:
            version = self._given[self._next]
            return version if version <= self._newest else None
        if self._is_settling and self._admission == "bounded":
            return None  # the call can be left to the next version
        step = self._calls[self._next].step
        return admitted_version(self._admission, step, self._newest, self._max_lag)

    def _forget(self) -> None:
        """Drops the parameters of versions that no later call gets."""
        admitted = self._admitted()
        oldest = self._newest if admitted is None else admitted
        self._params = {v: params for v, params in self._params.items() if v >= oldest}


def num_answered(run: Run) -> int:
    """Returns how many calls a run has read or holds unread, which are the first ones.

    Raises:
      ValueError: the unread groups are not those of the next calls.
    """
    calls = list_calls(run.config)
    at_once, num_groups = len(calls[0].slots), run.config.num_prompts
    steps_W, slots_W, *_ = run.buffer.unread()
    num_groups_done = run.step * num_groups + len(steps_W)
    is_next = np.array_equal(
        steps_W * num_groups + slots_W, np.arange(run.step * num_groups, num_groups_done)
    )
    if not is_next or num_groups_done % at_once:
        raise ValueError(
            f"the unread groups before step {run.step} are not those of the next calls"
        )
    return num_groups_done // at_once
