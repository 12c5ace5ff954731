"""Puts the records of a trainer in order: restarts, groups of samples, steps without a record."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Generic, TypeVar

from staleness_grpo.staleness.converters import statistics
from staleness_grpo.staleness.converters.formats import Format
from staleness_grpo.staleness.converters.samples import Counts, Sample
from staleness_grpo.staleness.converters.sources import Record
from staleness_grpo.staleness.converters.statistics import Statistics

Kept = TypeVar("Kept")


@dataclasses.dataclass
class Group:
    """Holds the span of policy versions that generated the samples of a group."""

    oldest: int
    newest: int
    members: set[int | str]
    last: Record  # a record of its newest version

    def add(self, sample: Sample) -> None:
        """Widens the span by a sample."""
        self.oldest = min(self.oldest, sample.oldest)
        if sample.newest > self.newest:
            self.newest, self.last = sample.newest, sample.record


class Restarts(Generic[Kept]):
    """Keeps what was recorded last of each step, when a run goes back to an earlier step."""

    def __init__(self, replace: bool, counts: Counts):
        self.steps: dict[int, Kept] = {}
        self._replace, self._counts, self._last = replace, counts, -1

    def enter(self, step: int, record: Record, is_repeated: bool) -> None:
        """Says that a record of this step comes next.

        If the step is an earlier one, or the record is a repeated one, what is kept of it and of
        later steps is dropped.

        Raises:
          TraceError: the run goes back, and that is to be refused.
        """
        if self.steps and (step < self._last or is_repeated):
            if not self._replace:
                is_earlier = step < self._last
                what = f"comes after step {self._last}" if is_earlier else "is recorded again"
                hint = "give --restarts=replace to keep the later records"
                raise record.refuse(f"step {step} {what}: {hint}")
            dropped = [other for other in self.steps if other >= step]
            for other in dropped:
                del self.steps[other]
            self._counts["restarts"] += 1
            self._counts["steps replaced by later records of them"] += len(dropped)
        self._last = step


def groups(
    samples: Iterator[Sample], format_: Format, replace: bool, counts: Counts
) -> dict[int, list[Group]]:
    """Returns the groups of each step, in the order of their slots.

    Raises:
      TraceError: a sample is given twice, a span goes backwards, slots have gaps, or the run was
        restarted and `replace` is false.
    """
    kept: Restarts[dict[int | str, Group]] = Restarts(replace, counts)
    for sample in samples:
        counts["samples read"] += 1
        if sample.newest < sample.oldest:
            reason = f"the versions go backwards, from {sample.oldest} to {sample.newest}"
            raise sample.record.refuse(reason)
        is_repeated = _is_known(sample, kept.steps.get(sample.step, {}))
        if not format_.slots:
            kept.enter(sample.step, sample.record, is_repeated)
        elif is_repeated:
            reason = f"step {sample.step}, slot {sample.group} is given a second time"
            raise sample.record.refuse(reason)
        here = kept.steps.setdefault(sample.step, {})
        key = f"sample {len(here)}" if sample.group is None else sample.group
        if key in here:
            here[key].add(sample)
        else:
            here[key] = Group(sample.oldest, sample.newest, set(), sample.record)
        if sample.member is not None:
            here[key].members.add(sample.member)
    for step, by_key in kept.steps.items():
        slots = sorted(key for key in by_key if isinstance(key, int))
        if format_.slots and slots != list(range(len(slots))):
            slot = next(slot for slot, key in enumerate(slots) if slot != key)
            raise by_key[slots[0]].last.refuse(f"step {step} has a gap: slot {slot} is absent")
    return {step: _in_order(by_key) for step, by_key in kept.steps.items()}


def _is_known(sample: Sample, here: dict[int | str, Group]) -> bool:
    """Returns whether this sample of this group was read before, as far as they have names."""
    known = here.get(sample.group) if sample.group is not None else None
    return known is not None and sample.member in known.members


def _in_order(by_key: dict[int | str, Group]) -> list[Group]:
    """Returns groups by their numbers, or in the order of the file where they have names."""
    numbers = [key for key in by_key if isinstance(key, int)]
    return [by_key[key] for key in (sorted(numbers) if len(numbers) == len(by_key) else by_key)]


def logged(
    path: pathlib.Path, table: statistics.Table, scale: int, replace: bool, counts: Counts
) -> dict[int, Statistics]:
    """Returns what was logged of each step, times `scale`; rows of one step are joined.

    Raises:
      TraceError: a step is incomplete or impossible, or the run was restarted and `replace` is
        false.
    """
    kept: Restarts[tuple[dict[str, float], Record]] = Restarts(replace, counts)
    for step, values, record in statistics.read(path, table, counts):
        counts["rows read"] += 1
        known = kept.steps[step][0] if step in kept.steps else {}
        kept.enter(step, record, bool(known.keys() & values.keys()))
        known = kept.steps[step][0] if step in kept.steps else {}
        kept.steps[step] = (known | values, record)
    by_step = {}
    newest = -1.0
    for step, (values, record) in sorted(kept.steps.items()):
        by_step[step] = statistics.statistics(step, values, record, table, scale, counts)
        if values.get("current", newest) < newest:
            reason = f"the current version goes back from {newest:g} to {values['current']:g}"
            raise record.refuse(f"{reason}: convert each part of the run alone")
        newest = values.get("current", newest)
    return by_step
