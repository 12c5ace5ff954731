"""Reads trainers that log the mean, and often the extremes, of the lags of each step."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

from staleness_grpo.staleness.converters.sources import Record, files, records

Counts = collections.Counter[str]
STEPS = ("step", "Step", "_step", "global_step")  # names of the step in files and exported tables
TOLERANCE = 1e-4  # of a logged mean: float32 and six printed digits
MOST = 1_000_000  # a larger lag is no lag, and would be drawn for hours


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Holds the lags of one step as a trainer logged them: in versions, or in updates."""

    record: Record
    step: int
    mean: float
    extremes: tuple[int, int] | None  # the smallest and the largest lag; None: not logged


@dataclasses.dataclass(frozen=True)
class Table:
    """Says how a trainer logs the lags of a step."""

    fields: Mapping[str, str]  # what is logged -> the metric's name
    steps: tuple[str, ...] = ()  # names of the step that only this trainer uses
    averages_extremes: bool = False  # the trainer averages extremes over parts of a batch
    # Lags are steps divided by the steps of a version, so that they may be fractions of a version.
    are_quotients: bool = False
    mean: Callable[[Mapping[str, float]], float] = lambda values: values["mean"]


def read(
    path: pathlib.Path, table: Table, counts: Counts
) -> Iterator[tuple[int, dict[str, float], Record]]:
    """Yields step, logged values by the keys of `table.fields`, and record of each row with any."""
    for record in records(files(path, ("*.jsonl", "*.csv")), path):
        row = record
        if isinstance(record.fields.get("data"), dict):  # {"step": 3, "data": {...}} of verl
            row = dataclasses.replace(record, fields=record.fields | record.fields["data"])
        named = {kind: _column(row, name) for kind, name in table.fields.items()}
        logged = {kind: row.number(name) for kind, name in named.items() if name is not None}
        if not logged:
            counts["rows without staleness left out"] += 1
            continue
        names = [name for name in (*table.steps, *STEPS) if row.value(name) is not None]
        if not names:
            counts["rows without a step left out"] += 1
            continue
        yield row.integer(names[0]), logged, row


def _column(row: Record, name: str) -> str | None:
    """Returns the column of a metric that has a value; None if there is none.

    Exported tables put the name of the run in front, and some trainers a prefix of their own.
    """
    found = [
        column
        for column in row.fields
        if column == name or column.endswith((f" - {name}", f"/{name}"))
    ]
    found = [column for column in found if row.value(column) is not None]
    if len(found) > 1:
        raise row.refuse(f"{found[0]} and {found[1]} are both {name}: export one run alone")
    return found[0] if found else None


def statistics(
    step: int, values: Mapping[str, float], row: Record, table: Table, scale: int, counts: Counts
) -> Statistics:
    """Returns the lags of a step, in units that are smaller by a factor `scale`.

    Raises:
      TraceError: the lags are incomplete or impossible.
    """
    missing = [name for kind, name in table.fields.items() if kind not in values]
    if missing:
        raise row.refuse(f"step {step} has no {missing[0]}")
    mean = table.mean(values) * scale
    if "least" not in values:
        extremes = None
        least = most = mean
    else:
        least, most = _near_whole(values["least"] * scale), _near_whole(values["most"] * scale)
        if not (least.is_integer() and most.is_integer()):
            if not table.averages_extremes:
                reason = f"the lags of step {step} reach from {least} to {most}, not integers"
                raise row.refuse(reason)
            counts["steps whose extremes are averages, rounded outward"] += 1
        extremes = (int(least // 1), int(-(-most // 1)))
    if min(least, mean) < -TOLERANCE:
        raise row.refuse(f"step {step} has the lag {min(least, mean)}, below 0")
    if not least - TOLERANCE <= mean <= most + TOLERANCE:
        raise row.refuse(f"step {step} has the mean {mean}, not between {least} and {most}")
    if most > MOST:
        raise row.refuse(f"step {step} has the lag {most:g}, above {MOST}")
    return Statistics(row, step, max(mean, 0.0), extremes)


def _near_whole(value: float) -> float:
    """Returns the whole number that a value is within TOLERANCE of, or else the value."""
    whole = round(value)
    return float(whole) if abs(value - whole) <= TOLERANCE else value
