"""Converts the records of a trainer to a trace, and counts all that was dropped or filled."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from staleness_grpo.errors import FieldError, require, require_at_least, require_choice
from staleness_grpo.runtime.records import write_jsonl
from staleness_grpo.staleness.converters import steps
from staleness_grpo.staleness.converters.drawing import drawn_lags
from staleness_grpo.staleness.converters.formats import FORMATS, Format, recognized
from staleness_grpo.staleness.converters.samples import Counts
from staleness_grpo.staleness.converters.sources import Record
from staleness_grpo.staleness.trace import HEADER, TraceError


@dataclasses.dataclass(frozen=True)
class Options:
    """Says how records are read. Every field is a flag of `experiments.convert_trace`.

    Raises:
      FieldError: a field cannot be used, or one that the format needs is missing.
    """

    format: str
    updates_per_version: int | None = None  # U, optimizer updates from one version to the next
    steps_per_version: int = 1  # K, recorded steps from one version to the next
    first_step: int | None = None  # number of the first recorded step; None: as the format has it
    first_version: int | None = None  # number of the version before it; None: as the format has it
    num_groups: int | None = None  # N of the trace; None: as the records have it
    span: str = "oldest"  # which of a group's versions counts: oldest or newest
    restarts: str = "refuse"  # a run that goes back to an earlier step: refuse or replace
    holes: str = "refuse"  # steps without a record: refuse, or previous for the lags before them
    early: str = "refuse"  # versions from before the first step: refuse, or clip to that version
    seed: int = 0  # of lags that are drawn

    def __post_init__(self):
        fields = dataclasses.asdict(self)
        require_choice(fields, "format", tuple(FORMATS))
        require_choice(fields, "span", ("oldest", "newest"))
        require_choice(fields, "restarts", ("refuse", "replace"))
        require_choice(fields, "holes", ("refuse", "previous"))
        require_choice(fields, "early", ("refuse", "clip"))
        require_at_least(fields, {"steps_per_version": 1, "seed": 0})
        for name in ("updates_per_version", "num_groups"):
            if fields[name] is not None:
                require_at_least(fields, {name: 1})
        chosen = FORMATS[self.format]
        if chosen.in_versions:
            hint = f"format={self.format} counts weight versions: give the optimizer updates"
            hint += " from one version to the next, 1 if every update is published"
            require(self.updates_per_version is not None, "updates_per_version", hint, "")
            hint = f"{self.steps_per_version} must divide updates_per_version"
            hint += f"={self.updates_per_version}: give the recorded steps of one version"
            divides = self.updates % self.steps_per_version == 0
            require(divides, "steps_per_version", hint, self.steps_per_version)
        else:
            hint = f"format={self.format} counts optimizer updates: leave the flag out"
            given = self.updates_per_version
            require(given is None, "updates_per_version", hint, given)
            given = self.steps_per_version
            require(given == 1, "steps_per_version", hint, given)
        hint = f"format={self.format} gives lags: leave the flag out"
        gives_lags = chosen.gives_lags or chosen.table is not None
        given = self.first_version
        require(given is None or not gives_lags, "first_version", hint, given)
        hint = f"format={self.format} has no groups: give the number of groups of a learner step"
        require(chosen.table is None or self.num_groups is not None, "num_groups", hint, "")

    @property
    def updates(self) -> int:
        """U, the number of optimizer updates from one version to the next."""
        return self.updates_per_version or 1

    @property
    def minibatches(self) -> int:
        """The number of optimizer updates that one recorded step makes, U / K."""
        return self.updates // self.steps_per_version


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Holds a trace, and how it was made."""

    lags: list[list[int]]  # [I][N], in optimizer updates
    header: dict[str, Any]

    def write(self, path: pathlib.Path) -> None:
        """Writes the trace, atomically."""
        write_jsonl(path, self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield {HEADER: self.header}
        for step, lags in enumerate(self.lags):
            for slot, lag in enumerate(lags):
                yield {"step": step, "slot": slot, "behavior_version": step - lag}


@dataclasses.dataclass(frozen=True)
class _Step:
    """Holds the versions of a recorded step's groups, counted from the run's first version."""

    versions: list[int]
    record: Record
    updates: int  # optimizer updates from one version to the next


def convert(path: pathlib.Path, options: Options) -> Conversion:
    """Converts a file, or a folder of files.

    Raises:
      TraceError: the records cannot be converted. The message names the record.
      FieldError: an option does not fit the records.
      OSError: a file cannot be read.
    """
    counts: Counts = collections.Counter()
    chosen = FORMATS[options.format]
    try:
        by_step, first_step = _recorded(path, options, chosen, counts)
    except TraceError as error:
        others = [name for name in recognized(path) if name != options.format]
        if counts["samples read"] or counts["rows read"] or not others:
            raise
        raise TraceError(f"{error}; it looks like format={' or '.join(others)}") from error
    lags = _lags(by_step, first_step, options, counts)
    is_drawn = chosen.table is not None
    header = {
        "format": options.format,
        "lags": "drawn" if is_drawn else "recorded",
        "source": path.resolve().name,
        "options": {
            name: value
            for name, value in dataclasses.asdict(options).items()
            if value is not None and name != "format" and (is_drawn or name != "seed")
        },
        "first_step": first_step,
        "counts": {what: number for what, number in counts.items() if number},
    }
    return Conversion(lags, header)


def _recorded(
    path: pathlib.Path, options: Options, chosen: Format, counts: Counts
) -> tuple[dict[int, _Step], int]:
    """Returns the recorded steps by their numbers, and the number of the first."""
    replace = options.restarts == "replace"
    if chosen.table is not None:
        scale = options.steps_per_version if chosen.table.are_quotients else 1
        logged = steps.logged(path, chosen.table, scale, replace, counts)
        first_step = _first_step(min(logged, default=None), options, chosen)
        num_groups = (options.num_groups or 1) * options.minibatches
        by_step = {}
        for step, statistics in logged.items():
            drawn = drawn_lags(statistics, num_groups, options.seed, counts)
            version = (step - first_step) * scale // options.steps_per_version
            unit = options.updates // scale
            by_step[step] = _Step([version - lag for lag in drawn], statistics.record, unit)
        return by_step, first_step
    assert chosen.reader is not None  # a format has samples or a table
    groups = steps.groups(chosen.reader(path, counts), chosen, replace, counts)
    first_step = _first_step(min(groups, default=None), options, chosen)
    first_version = first_step if chosen.gives_lags else chosen.first_version
    if options.first_version is not None:
        first_version = options.first_version
    before = first_version  # the oldest version of the step before
    for step, found in sorted(groups.items()):
        counts["steps with only older versions than the step before (counted anew?)"] += (
            max(group.newest for group in found) < before
        )
        before = min(group.oldest for group in found)
        current = (step - first_step) // options.steps_per_version + first_version
        for group in found:
            if group.newest > current:
                reason = f"step {step} has version {current}, and learned from {group.newest}"
                hint = "give --first_step and --first_version as the trainer counts"
                raise group.last.refuse(f"{reason}: {hint}")
            counts[f"groups of several versions, of which the {options.span} counts"] += (
                group.oldest < group.newest
            )
    pick: Callable[[steps.Group], int] = (
        (lambda group: group.oldest) if options.span == "oldest" else (lambda group: group.newest)
    )
    return {
        step: _Step(
            [pick(group) - first_version for group in found], found[0].last, options.updates
        )
        for step, found in groups.items()
    }, first_step


def _first_step(least: int | None, options: Options, chosen: Format) -> int:
    """Returns the number of the first step: given, known of the format, or detected."""
    if least is None:
        hint = "give another file or format"
        raise TraceError(f"no record has {chosen.sign}, as {chosen.about} have: {hint}")
    first = options.first_step if options.first_step is not None else chosen.first_step
    if first is None:
        if least not in (0, 1):
            hint = "give --first_step, the number of the run's first step"
            raise TraceError(f"the first record is of step {least}: {hint}")
        return least
    if least < first:
        hint = "give --first_step as the trainer counts"
        raise TraceError(f"step {least} comes before the first step, {first}: {hint}")
    return first


def _lags(
    by_step: dict[int, _Step], first_step: int, options: Options, counts: Counts
) -> list[list[int]]:
    """Returns the lags [I][N] of the learner steps, in optimizer updates."""
    num_groups = _num_groups(by_step, options)
    lags: list[list[int]] = []
    for step in range(first_step, max(by_step) + 1):
        if step in by_step:
            lags += _step_lags(by_step[step], step, len(lags), num_groups, options, counts)
        elif options.holes == "refuse" or not lags:
            num_holes = max(by_step) + 1 - first_step - len(by_step)
            hint = "give --first_step if the records begin later"
            if lags:
                hint = "give --holes=previous to repeat the lags before them"
            reason = f"{num_holes} steps have no record, the first is step {step}"
            raise TraceError(f"{reason}: {hint}")
        else:
            counts["steps without a record, filled with the lags before them"] += 1
            lags += lags[-options.minibatches :]
    return lags


def _num_groups(by_step: dict[int, _Step], options: Options) -> int:
    """Returns the number of groups that every recorded step gets. Raises if it is not known."""
    if options.num_groups is not None:
        return options.num_groups * options.minibatches
    first, *others = sorted(by_step)
    num_groups = len(by_step[first].versions)
    for step in others:
        found = len(by_step[step].versions)
        if found != num_groups:
            reason = f"step {first} has {num_groups} groups, and step {step} has {found}"
            hint = "give --num_groups, which leaves groups out or repeats some"
            raise by_step[step].record.refuse(f"{reason}: {hint}")
    if num_groups % options.minibatches:
        hint = f"a step makes {options.minibatches} updates, which must divide its {num_groups}"
        raise FieldError("num_groups", f"{hint} groups: give the groups of one update", "")
    return num_groups


def _step_lags(
    recorded: _Step, step: int, first: int, num_groups: int, options: Options, counts: Counts
) -> list[list[int]]:
    """Returns the lags [U / K][N] of the learner steps that a recorded step makes.

    The n groups of the step are taken in their order. Place i gets group floor(i n / num_groups).
    So with too many, groups are left out at equal distances. With too few, groups are repeated.
    Consecutive places belong to one update. Later updates of the step have larger lags.
    """
    found = recorded.versions
    counts["groups left out"] += max(len(found) - num_groups, 0)
    counts["groups repeated"] += max(num_groups - len(found), 0)
    versions = [found[place * len(found) // num_groups] for place in range(num_groups)]
    size = num_groups // options.minibatches
    lags = []
    for update in range(options.minibatches):
        learner = first + update  # the optimizer updates before this one
        row = []
        for version in versions[update * size : (update + 1) * size]:
            lag = learner - version * recorded.updates
            if lag > learner:
                if options.early == "refuse":
                    reason = f"step {step} learned from a version before the first step"
                    hint = "give --early=clip to take the first version"
                    raise recorded.record.refuse(f"{reason}: {hint}")
                counts["lags cut to the first version"] += 1
                lag = learner
            row.append(lag)
        lags.append(row)
    return lags
