"""Defines the buffer rules: which group starts, which groups a step learns from, which are dropped.

Trainers call them buffer policies or samplers. S is `max_lag`, N the groups of a learner step. A
place is a group that is started and not discarded. Every rule starts a group while

    (S + version + 1) N > places

where `version` is that of the engines' weights (AReaL, arXiv 2505.24298). With p places before it,
a group is bound to learner step floor(p / N), if groups are trained in the order of their start.
Then its lag is at most S.
"""

import dataclasses
from typing import ClassVar

from staleness_grpo.errors import FieldError, require
from staleness_grpo.pipeline.groups import Group


@dataclasses.dataclass(slots=True)
class Buffer:
    """Holds all that a rule may look at.

    Groups stand in the order of their start in `unfinished`, and of their completion in `ready`.
    """

    step: int = 0  # the learner step that comes next, which is the learner's version
    published: int = 0  # version of the engines' weights
    num_started: int = 0
    num_discarded: int = 0
    unfinished: dict[int, Group] = dataclasses.field(default_factory=dict)  # by number
    ready: dict[int, Group] = dataclasses.field(default_factory=dict)  # by number

    def lag(self, group: Group) -> int:
        """Returns the lag that the group would have in the next learner step."""
        return self.step - group.version


@dataclasses.dataclass(frozen=True)
class Rule:
    """Trains ready groups, those of the oldest weights first. A slow group can be overtaken.

    Subclasses differ in the groups that wait, or that are dropped.
    """

    max_lag: int  # S
    num_groups: int  # N

    keeps_bound: ClassVar[bool] = False  # whether no lag is ever above S
    only_lag: ClassVar[int | None] = None  # the one S that the rule can have; None: any

    def may_start(self, buffer: Buffer) -> bool:
        """Returns whether another group may start."""
        places = buffer.num_started - buffer.num_discarded
        return (self.max_lag + buffer.published + 1) * self.num_groups > places

    def dropped(self, buffer: Buffer) -> list[Group]:
        """Returns the groups that are discarded before the next learner step."""
        del buffer
        return []

    def batch(self, buffer: Buffer) -> list[Group] | None:
        """Returns the N groups of the next learner step; None if the learner has to wait."""
        if len(buffer.ready) < self.num_groups:
            return None
        return oldest_weights_first(buffer)[: self.num_groups]


def oldest_weights_first(buffer: Buffer) -> list[Group]:
    """Returns the ready groups by weight version. Equal versions keep the order of completion."""
    return sorted(buffer.ready.values(), key=lambda group: group.version)


class ReadyFirst(Rule):
    """Trains groups in the order of their completion, and drops none."""

    def batch(self, buffer: Buffer) -> list[Group] | None:
        """Returns the first N groups that were ready."""
        if len(buffer.ready) < self.num_groups:
            return None
        return list(buffer.ready.values())[: self.num_groups]


class Fifo(Rule):
    """Trains groups in the order of their weight version, and waits for those of the oldest."""

    keeps_bound = True

    def batch(self, buffer: Buffer) -> list[Group] | None:
        """Returns N ready groups that overtake no group of older weights."""
        if len(buffer.ready) < self.num_groups:
            return None
        groups = oldest_weights_first(buffer)[: self.num_groups]
        # Unfinished groups stand in the order of their start, so the first has the oldest weights.
        first_unfinished = next(iter(buffer.unfinished.values()), None)
        overtakes = first_unfinished is not None and groups[-1].version > first_unfinished.version
        return None if overtakes else groups


class Wait(Rule):
    """Trains the oldest ready weights, and waits for unfinished groups that have lag S.

    verl's strategy `wait` does so. If more than N groups of one version come that far together, a
    step has room for N of them, and the rest gets a lag above S.
    """

    def batch(self, buffer: Buffer) -> list[Group] | None:
        """Returns N ready groups, unless an unfinished group has lag S already."""
        first_unfinished = next(iter(buffer.unfinished.values()), None)
        if first_unfinished is not None and buffer.lag(first_unfinished) >= self.max_lag:
            return None
        return super().batch(buffer)


class InOrder(Rule):
    """Binds each group to a learner step when it starts. The step waits for all its groups."""

    keeps_bound = True

    def batch(self, buffer: Buffer) -> list[Group] | None:
        """Returns the N groups of the next step."""
        first = buffer.step * self.num_groups
        numbers = range(first, first + self.num_groups)
        if all(number in buffer.ready for number in numbers):
            return [buffer.ready[number] for number in numbers]
        return None


class Synchronous(InOrder):
    """Starts the groups of a step once its weights are on the engines. Nothing overlaps."""

    only_lag = 0


class OneStepOff(InOrder):
    """Generates the next step's groups while the learner takes a step. Batches do not overlap."""

    only_lag = 1

    def may_start(self, buffer: Buffer) -> bool:
        """Returns whether another group may start: a new batch needs the one before complete."""
        opens_batch = buffer.num_started % self.num_groups == 0
        return super().may_start(buffer) and not (opens_batch and buffer.unfinished)


class Windowed(Rule):
    """Discards ready groups whose lag is above S, when the learner takes a batch."""

    keeps_bound = True

    def dropped(self, buffer: Buffer) -> list[Group]:
        """Returns the ready groups that are too old."""
        return [group for group in buffer.ready.values() if buffer.lag(group) > self.max_lag]


class Drop(Windowed):
    """Discards every group whose lag is above S, also one that engines are generating."""

    def dropped(self, buffer: Buffer) -> list[Group]:
        """Returns the ready and the unfinished groups that are too old."""
        unfinished = buffer.unfinished.values()
        too_old = [group for group in unfinished if buffer.lag(group) > self.max_lag]
        return super().dropped(buffer) + too_old


RULES: dict[str, type[Rule]] = {
    "synchronous": Synchronous,
    "one_step_off": OneStepOff,
    "in_order": InOrder,
    "fifo": Fifo,
    "wait": Wait,
    "bounded": Rule,
    "ready_first": ReadyFirst,
    "windowed": Windowed,
    "drop": Drop,
}


def make_rule(name: str, max_lag: int, num_groups: int) -> Rule:
    """Makes a buffer rule.

    Args:
      name: a key of RULES.
      max_lag: S.
      num_groups: N.

    Raises:
      FieldError: the name is unknown, `max_lag` is negative, or the rule has only another lag.
    """
    if name not in RULES:
        raise FieldError("buffer", f"choose one of {', '.join(RULES)}", name)
    rule = RULES[name](max_lag, num_groups)
    require(max_lag >= 0, "max_lag", "give a number >= 0", max_lag)
    hint = f"the rule {name} has the lag {rule.only_lag} alone: give {rule.only_lag}"
    require(rule.only_lag in (None, max_lag), "max_lag", hint, max_lag)
    return rule
