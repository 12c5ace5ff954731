"""Simulates a pipeline event by event: engines, buffer, learner and weight publication."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import simpy

from staleness_grpo.pipeline.cluster import ALL, DRAIN, NOTHING, Cluster
from staleness_grpo.pipeline.engine import Engine
from staleness_grpo.pipeline.groups import Group, Response
from staleness_grpo.pipeline.rules import Buffer, Rule

Process = Generator[simpy.Event, Any, None]
# (group, weight version) -> the lengths of the group's responses. It is called when a group starts.
Lengths = Callable[[int, int], list[int]]


@dataclasses.dataclass(frozen=True)
class Step:
    """Holds what happened in one learner step. Times are seconds; sums count from time 0."""

    step: int
    start: float  # when the learner had its batch
    end: float  # when the update was done
    free: float  # when the learner could take the next batch; later than `end` if it published
    groups: tuple[Group, ...]  # the batch, by slot
    num_ready: int  # ready groups that the batch left behind
    busy_seconds: float  # sum of slots times seconds until `free`
    paused_seconds: float  # seconds until `free` in which the engines stood still
    ready_seconds: float  # sum of ready groups times seconds until `free`


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds a finished simulation."""

    cluster: Cluster
    rule: Rule
    steps: list[Step]
    groups: list[Group]  # all that started, by number
    num_tokens: float  # tokens that the engines generated, also of responses that have not ended


def simulate(cluster: Cluster, rule: Rule, num_steps: int, seed: int) -> Result:
    """Simulates a pipeline until the learner has taken `num_steps` steps.

    Lengths depend on the seed and on a group's number alone. Nothing else is random.

    Args:
      cluster: the engines, responses and learner.
      rule: the buffer rule, for the cluster's number of groups.
      num_steps: learner steps, 1 or more.
      seed: seeds the lengths.
    """
    draw = cluster.lengths.sampler(cluster.group_size, seed)
    return Simulation(cluster, rule, lambda group, version: draw(group)).run(num_steps)


class Simulation:
    """A pipeline whose responses have the lengths that a function gives when their group starts.

    Args:
      cluster: the engines, responses and learner. Its lengths are not read.
      rule: the buffer rule, for the cluster's number of groups.
      lengths: gives the lengths of a group's responses.
    """

    def __init__(self, cluster: Cluster, rule: Rule, lengths: Lengths):
        self._cluster, self._rule = cluster, rule
        self._env = simpy.Environment()
        self._engines = [
            Engine(self._env, number, cluster.engines, cluster.in_flight, self._ended)
            for number in range(cluster.engines.count)
        ]
        self._lengths = lengths
        self._buffer = Buffer()
        self._groups: list[Group] = []
        self._waiting: deque[Response] = deque()  # responses that wait for a slot
        self._is_held = False  # no response may start
        self._batch_may_be_there = self._env.event()
        self._version_is_there = self._env.event()
        self._engines_are_empty = self._env.event()
        self._steps: list[Step] = []
        self._batch: list[Group] | None = None  # the newest batch that the learner took
        self._is_started = False
        self._paused_seconds = 0.0
        self._ready_seconds, self._ready_since = 0.0, 0.0

    @property
    def published(self) -> int:
        """Returns the weight version of the engines. Later groups never have an older one."""
        return self._buffer.published

    @property
    def groups(self) -> list[Group]:
        """Returns all groups that have started, by number."""
        return self._groups

    def run(self, num_steps: int) -> Result:
        """Runs until the learner has taken `num_steps` steps."""
        self._env.run(until=self._start(range(num_steps)))
        return self.result()

    def next_batch(self) -> tuple[float, list[Group]]:
        """Runs until the learner takes its next batch.

        Returns:
          (seconds, groups): the time on the simulation's clock, and the batch by slot. The update
          on this batch has begun. Its weights reach no engine before the next call.
        """
        if not self._is_started:
            self._start(itertools.count())
        self._batch = None
        while self._batch is None:
            self._env.step()
        return self._env.now, self._batch

    def result(self) -> Result:
        """Returns what has happened until now."""
        for engine in self._engines:
            engine.advance()
        tokens = sum(engine.tokens for engine in self._engines)
        return Result(self._cluster, self._rule, self._steps, self._groups, tokens)

    def _start(self, steps: Iterable[int]) -> simpy.Process:
        self._is_started = True
        if self._cluster.publish_blocks == NOTHING:
            self._env.process(self._publisher())
        self._fill()
        return self._env.process(self._learner(steps))

    # The learner and the weights.

    def _learner(self, steps: Iterable[int]) -> Process:
        for step in steps:
            while (batch := self._take()) is None:
                self._batch_may_be_there = self._env.event()
                yield self._batch_may_be_there
            start, num_ready = self._env.now, len(self._buffer.ready)
            yield self._env.timeout(self._cluster.step_seconds)
            end = self._env.now
            self._buffer.step = step + 1
            if self._cluster.publish_blocks != NOTHING:
                yield from self._publish()
            elif not self._version_is_there.triggered:
                self._version_is_there.succeed()
            self._record(step, start, end, batch, num_ready)

    def _record(
        self, step: int, start: float, end: float, batch: list[Group], num_ready: int
    ) -> None:
        for engine in self._engines:
            engine.advance()
        self._count_ready()
        self._steps.append(
            Step(
                step,
                start,
                end,
                free=self._env.now,
                groups=tuple(batch),
                num_ready=num_ready,
                busy_seconds=sum(engine.busy_seconds for engine in self._engines),
                paused_seconds=self._paused_seconds,
                ready_seconds=self._ready_seconds,
            )
        )

    def _publisher(self) -> Process:
        """Publishes beside the learner. Each publication takes the newest weights."""
        while True:
            if self._buffer.published == self._buffer.step:
                self._version_is_there = self._env.event()
                yield self._version_is_there
            yield from self._publish()

    def _publish(self) -> Process:
        version = self._buffer.step
        if self._cluster.in_flight == DRAIN:
            self._is_held = True
            while any(engine.num_busy for engine in self._engines):
                self._engines_are_empty = self._env.event()
                yield self._engines_are_empty
        pauses = self._cluster.publish_blocks == ALL
        if pauses:
            self._is_held = True
            for engine in self._engines:
                engine.pause(True)
        yield self._env.timeout(self._cluster.publish_seconds)
        for engine in self._engines:
            engine.load(version)
            if pauses:
                engine.pause(False)
        if pauses:
            self._paused_seconds += self._cluster.publish_seconds
        self._buffer.published, self._is_held = version, False
        self._fill()

    def _take(self) -> list[Group] | None:
        """Drops groups as the rule says, and takes the batch of the next step if it is there."""
        self._discard(self._rule.dropped(self._buffer))
        batch = self._rule.batch(self._buffer)
        if batch is not None:
            self._count_ready()
            for slot, group in enumerate(batch):
                del self._buffer.ready[group.number]
                group.step, group.slot, group.left = self._buffer.step, slot, self._env.now
            self._batch = batch
        return batch

    def _discard(self, groups: list[Group]) -> None:
        if not groups:
            return
        self._count_ready()
        cancelled: set[int] = set()
        for group in groups:
            group.left = self._env.now
            self._buffer.num_discarded += 1
            self._buffer.ready.pop(group.number, None)
            if self._buffer.unfinished.pop(group.number, None) is not None:
                cancelled.add(group.number)
                for response in group.responses:
                    if response.engine >= 0 and response.end is None:
                        self._engines[response.engine].cancel(response)
        if cancelled:
            kept = (r for r in self._waiting if r.group.number not in cancelled)
            self._waiting = deque(kept)
            for engine in self._engines:
                engine.reschedule()
        self._fill()
        self._tell_if_empty()

    def _count_ready(self) -> None:
        """Brings the integral of the number of ready groups to the present."""
        elapsed = self._env.now - self._ready_since
        self._ready_seconds += elapsed * len(self._buffer.ready)
        self._ready_since = self._env.now

    # Groups and their responses.

    def _fill(self) -> None:
        """Starts responses in free slots. A new group starts only when no response waits."""
        if self._is_held:
            return
        touched = set()
        num_free = sum(engine.num_free for engine in self._engines)
        while num_free:
            if not self._waiting:
                if not self._rule.may_start(self._buffer):
                    break
                self._start_group()
            engine = min(self._engines, key=lambda engine: engine.num_busy)
            engine.start(self._waiting.popleft())
            touched.add(engine)
            num_free -= 1
        for engine in self._engines:
            if engine in touched:
                engine.reschedule()

    def _start_group(self) -> None:
        buffer = self._buffer
        group = Group(buffer.num_started, buffer.published, self._env.now)
        lengths = self._lengths(group.number, group.version)
        group.responses = [Response(group, length) for length in lengths]
        group.num_unfinished = len(group.responses)
        buffer.num_started += 1
        buffer.unfinished[group.number] = group
        self._groups.append(group)
        self._waiting.extend(group.responses)

    def _ended(self, responses: list[Response]) -> None:
        """Starts others in the free slots, and completes groups."""
        complete = []
        for response in responses:
            response.group.num_unfinished -= 1
            if not response.group.num_unfinished:
                complete.append(response.group)
        for group in complete:
            if self._cluster.reward_seconds:
                timeout = self._env.timeout(self._cluster.reward_seconds, value=group)
                assert timeout.callbacks is not None  # it has not happened yet
                timeout.callbacks.append(lambda event: self._is_ready(event.value))
            else:
                self._is_ready(group)
        self._fill()
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        """Wakes a publication that waits for empty engines."""
        if not (self._engines_are_empty.triggered or any(e.num_busy for e in self._engines)):
            self._engines_are_empty.succeed()

    def _is_ready(self, group: Group) -> None:
        """Moves a group with rewards to the buffer, unless it was discarded meanwhile."""
        if group.left is not None:
            return
        self._count_ready()
        group.ready = self._env.now
        del self._buffer.unfinished[group.number]
        self._buffer.ready[group.number] = group
        if not self._batch_may_be_there.triggered:
            self._batch_may_be_there.succeed()
