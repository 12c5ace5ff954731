"""Samples groups whose weights change while they are sampled, and replays such groups.

A call samples its groups in parts. Between two parts the generator may take newer parameters. All
responses of the call then go on with them from the same position. The noise of a token does not
depend on the version, so the positions and versions of the changes decide every token.
"""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.staleness import trace
from staleness_grpo.staleness.admission import FINISH, RECOMPUTE
from staleness_grpo.training.calls import Call, list_calls
from staleness_grpo.training.rollouts import TRAINING, Generator, PendingRollout
from staleness_grpo.training.run import Run
from staleness_grpo.types import PyTree


def samples_in_parts(config: ConfigDict) -> bool:
    """Returns whether weights may change while a group is sampled."""
    return config.get("asynchronous", {}).get("in_flight", FINISH) != FINISH


class GrowingCall:
    """Samples the groups of a call in parts, on the devices of the generator.

    Args:
      generator: has the programs, the prompts and the seed.
      call: the groups.
      version, params: the policy that reads the prompts and samples the first tokens.
      recompute: whether new parameters compute the cache of the tokens so far anew.
    """

    def __init__(
        self, generator: Generator, call: Call, version: int, params: PyTree, recompute: bool
    ):
        self._generator, self._call, self._recompute = generator, call, recompute
        self._changes = [trace.Change(0, version)]
        self._params = params = generator.place_params(params)
        prompts = generator.prompts(TRAINING, call.steps, call.slots)
        generator.watch("prompts", ())
        placed = generator.place(prompts, TRAINING, call.steps, call.slots)
        self._prompts, self._batch = prompts, (*placed, generator.group_size)
        self.max_length = generator.task.max_response_length  # R
        with jax.set_mesh(generator.mesh):
            self._unfinished = generator.programs.begin(params, *self._batch)

    @property
    def start_version(self) -> int:
        """Returns the version that sampled the first tokens."""
        return self._changes[0].version

    @property
    def position(self) -> int:
        """Returns how many tokens of the longest response are sampled."""
        return int(self._unfinished.position)

    def sample_until(self, position: int) -> bool:
        """Samples until each response has ended or has `position` tokens.

        Returns:
          Whether each response has ended, or has the largest length.
        """
        end = min(position, self.max_length)
        with jax.set_mesh(self._generator.mesh):
            self._unfinished = self._generator.programs.go_on(
                self._params, *self._batch, unfinished=self._unfinished, end=end
            )
        is_alive = bool(np.any(jax.device_get(self._unfinished.alive_NxG)))
        return not is_alive or self.position == self.max_length

    def sample_to_change(self, position: int) -> None:
        """Samples until the position of a recorded change. Raises TraceError if none is left."""
        if self.sample_until(position):
            reason = f"all responses of step {self._call.step}, slot {self._call.slots[0]} have"
            hint = "give the flags of the run that made the trace"
            raise trace.TraceError(f"{reason} ended at position {position}: {hint}")

    def change(self, version: int, params: PyTree) -> None:
        """Lets another version sample the next tokens."""
        self._params = params = self._generator.place_params(params)
        self._changes.append(trace.Change(self.position, version))
        if self._recompute:
            with jax.set_mesh(self._generator.mesh):
                self._unfinished = self._generator.programs.read_again(
                    params, *self._batch, unfinished=self._unfinished
                )

    def finish(self) -> PendingRollout:
        """Returns the groups, and starts to judge them."""
        mesh = self._generator.mesh
        self._generator.watch("sampling", self._unfinished.responses)
        responses = mesh_lib.get_own_rows(self._unfinished.responses, mesh)
        pending = self._generator.start_scoring(self._prompts, responses, self.start_version)
        version_R = trace.position_versions(self._changes, self.max_length)
        versions = np.tile(version_R, (len(self._prompts.index_N), 1))
        rollout = dataclasses.replace(pending.rollout, token_version_NxR=versions)
        return dataclasses.replace(pending, rollout=rollout)


class Replay:
    """A source of groups for `loop.train` that replays a trace whose weights change in flight.

    Each version begins its calls, and goes on with calls that change to it. A call whose weights
    change later waits for the later version.

    Args:
      run: a run, new or restored, whose schedule is a trace.
    """

    def __init__(self, run: Run):
        config = run.config
        self._calls = list_calls(config)
        at_once = len(self._calls[0].slots)
        lags_IxN = run.schedule.lags(np.arange(config.steps))
        self._changes = trace.read_changes(config.lag.trace, lags_IxN, at_once)
        self._begun_by: dict[int, list[int]] = {}  # version -> places of the calls that it begins
        for place, (step, slots) in enumerate(self._calls):
            version = step - int(lags_IxN[step, slots[0]])
            self._begun_by.setdefault(version, []).append(place)
        self._recompute = config.asynchronous.in_flight == RECOMPUTE
        self._waiting: dict[int, GrowingCall] = {}  # by the place of the call

    def provide(self, run: Run, step: int) -> dict[str, float]:
        """Samples what version `step` has to sample, and pushes the groups that are complete."""
        params = run.state.params
        if run.drift and run.schedule.max_lag:
            run.drift.remember(step, params)
        for place, growing in list(self._waiting.items()):
            if any(change.version == step for change in self._changes_of(place)):
                growing.change(step, params)
                self._sample_on(run, place, step)
        for place in self._begun_by.get(step, ()):
            call = self._calls[place]
            self._waiting[place] = GrowingCall(run.generator, call, step, params, self._recompute)
            self._sample_on(run, place, step)
        run.push_judged(needed=step)
        return {}

    def settle(self, run: Run) -> bool:
        """Returns whether no call waits. A snapshot cannot have one."""
        del run
        return not self._waiting

    def _changes_of(self, place: int) -> list[trace.Change]:
        """Returns the changes of a call in their order."""
        step, slots = self._calls[place]
        return self._changes.get((step, int(slots[0])), [])

    def _sample_on(self, run: Run, place: int, version: int) -> None:
        """Samples a call as far as this version does. If it is complete, it waits no more."""
        growing = self._waiting[place]
        later = [change for change in self._changes_of(place) if change.version > version]
        if later:
            try:
                growing.sample_to_change(later[0].position)
            except trace.TraceError as error:
                raise FieldError("lag.trace", str(error)) from error
            return
        growing.sample_until(growing.max_length)
        del self._waiting[place]
        call = self._calls[place]
        run.unjudged.append((call.steps, call.slots, growing.start_version, growing.finish()))
