"""Generates groups in a thread, on devices of its own, while the learner trains.

The generator answers calls in a fixed order. A call is `batch_prompts` neighboring slots of one
learner step. When a call starts, it gets the policy version that the admission allows, and that
choice is reported. The choice is all that depends on timing. Noise belongs to (seed, step, slot),
and the synchronous loop cuts the groups of a version into the same calls, in the same order. So
the recorded choices, replayed as a trace, give the same run to the byte.

If weights change in flight, the generator looks for a newer version after every `look_every` tokens
of a call. That it took one, and where, is reported as well.

Two threads share the fields of `BackgroundGenerator` under one condition variable:

  learner    publishes version t before step t, then waits for the groups of step t.
  generator  waits for an admitted version, answers a call, and puts the groups aside.
"""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.staleness.admission import RECOMPUTE, admitted_version
from staleness_grpo.staleness.trace import Change, Trace
from staleness_grpo.training.calls import Call, list_calls, num_answered
from staleness_grpo.training.in_flight import GrowingCall, samples_in_parts
from staleness_grpo.training.rollouts import PendingRollout
from staleness_grpo.training.run import Run
from staleness_grpo.types import PyTree

# Is called in the generator's thread when a version begins to sample tokens of a call: at position
# 0 when the call starts, and where newer weights go on with it. (call, position, version).
Report = Callable[[Call, int, int], None]


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


class BackgroundGenerator:
    """A source of groups for `loop.train`, whose generator runs at the same time as the learner.

    Used as a context manager, it starts and ends the generator's thread. It replaces the schedule
    of the run by one that has the lags of the groups that have arrived.

    Args:
      run: a run, new or restored. Its unread groups must be those of the next calls.
      report: is called when a call starts or goes on with a newer version, unless that is given.
      given: the versions of calls that an earlier process has started, by the place of the call in
        `list_calls`, each with the position from which it samples. The calls get these versions
        again, and no other ones, so that a run that was killed goes on as it did before.
    """

    def __init__(
        self, run: Run, report: Report, given: Mapping[int, Sequence[Change]] | None = None
    ):
        config = run.config
        self._generator = dataclasses.replace(run.generator, mesh=generator_mesh(config))
        self._admission = config.asynchronous.admission
        self._max_lag, self._report = config.lag.max_lag, report
        self._calls, self._given = list_calls(config), dict(given or {})
        self._in_parts = samples_in_parts(config)
        self._look_every = config.asynchronous.look_every
        self._recompute = config.asynchronous.in_flight == RECOMPUTE
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
        self._later: list[int] = []  # given versions that the call in flight still needs
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

    def settle(self, run: Run) -> bool:
        """Waits until only versions from `run.step` on can start calls, and takes the answers.

        A snapshot then has all groups of older versions, whose parameters it lacks. A new call
        starts only after the next version is published.

        Returns:
          Whether a snapshot can be made. It cannot while a call in flight waits for a given version
          that is not published yet.
        """

        def is_settled():
            if self._later and self._later[0] > self._newest:
                return True
            return not (self._is_answering or self._admitted() is not None)

        with self._changed:
            self._is_settling = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or is_settled())
            is_complete = not self._is_answering
        self._take(run)
        return is_complete

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
                place, version, params = started
                call, start = self._calls[place], time.perf_counter()
                if self._in_parts:
                    groups, waited = self._grow(place, version, params)
                else:
                    places, waited = (call.steps, call.slots), 0.0
                    ((_, _, groups),) = self._generator.generate(params, version, *places)
                if groups is None:
                    return
                seconds = time.perf_counter() - start - waited
                with self._changed:
                    self._answers.append(Answer(call, version, groups, seconds))
                    self._is_answering = False
                    self._changed.notify_all()
        except BaseException as error:  # the learner raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _grow(
        self, place: int, version: int, params: PyTree
    ) -> tuple[PendingRollout | None, float]:
        """Samples a call in parts; returns its groups, and the seconds that it waited for weights.

        There are no groups if the thread must end while the call waits.
        """
        call, given, waited = self._calls[place], self._given.get(place), 0.0
        growing = GrowingCall(self._generator, call, version, params, self._recompute)
        if given is not None:
            for position, later_version in given[1:]:
                growing.sample_to_change(position)
                start = time.perf_counter()
                later_params = self._wait_for(later_version)
                waited += time.perf_counter() - start
                if later_params is None:
                    return None, waited
                growing.change(later_version, later_params)
            growing.sample_until(growing.max_length)
            return growing.finish(), waited
        ends = itertools.count(self._look_every, self._look_every)
        while not growing.sample_until(next(ends)):
            with self._changed:
                newest, params = self._newest, self._params[self._newest]
            if newest > version:
                version = newest
                self._report(call, growing.position, version)
                growing.change(version, params)
        return growing.finish(), waited

    def _wait_for(self, version: int) -> PyTree | None:
        """Waits for the next version of the call in flight; None if the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._must_end or version <= self._newest)
            if self._must_end:
                return None
            self._later.pop(0)
            self._changed.notify_all()  # `settle` waits for a change that no version allows yet
            return self._params[version]

    def _start_call(self) -> tuple[int, int, PyTree] | None:
        """Waits until a call may start.

        Returns:
          The place of the call, its version and the parameters; None at the end.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._must_end or self._next == len(self._calls) or self._admitted() is not None
                )
            )
            version = self._admitted()
            if self._must_end or version is None:
                return None
            place, params = self._next, self._params[version]
            self._next += 1
            self._is_answering = True
            self._later = [change.version for change in self._given.get(place, ())][1:]
            self._forget()
            self._changed.notify_all()  # as in `_wait_for`
        if place not in self._given:
            self._report(self._calls[place], 0, version)
        return place, version, params

    def _admitted(self) -> int | None:
        """Returns the version with which the next call may start now; None if it has to wait."""
        if self._next == len(self._calls):
            return None
        if self._next in self._given:
            version = self._given[self._next][0].version
            return version if version <= self._newest else None
        if self._is_settling and self._admission == "bounded":
            return None  # the call can be left to the next version
        step = self._calls[self._next].step
        return admitted_version(self._admission, step, self._newest, self._max_lag)

    def _forget(self) -> None:
        """Drops the parameters of versions that no call gets any more."""
        admitted = self._admitted()
        oldest = min([self._newest if admitted is None else admitted, *self._later])
        self._params = {v: params for v, params in self._params.items() if v >= oldest}
