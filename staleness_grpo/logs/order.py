"""Puts the rows of a log in order of their steps: several rows of a step, restarts, shuffled rows.

A file is cut into stretches, in each of which the steps ascend. The rules are:

1. Rows of one step that follow each other are one record. The last value of each column counts.
   If two steps in a row have a column with two different values, two runs are mixed: refused.
2. A restart records steps again. So each stretch after the first must record a column of a step
   that an earlier one has recorded, and from there on the same steps, as far as both reach. Then
   the later stretch counts from its first step on. What was recorded before of these steps, and
   of all later ones, is dropped: that training was abandoned.
3. Rows that are out of order record nothing again. They are sorted if the steps are then evenly
   spaced, or if they were written in descending order, or if no column is in two stretches. They
   are refused if each stretch is evenly spaced too, over the same range, and wider than the whole:
   so would be the rows of a run that was restarted between two of its records.
4. Everything else is refused, because a restart cannot be told from rows out of order.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

UNCLEAR = "a restart cannot be told from rows out of order: sort the rows, or keep one run alone"
MIXED = "as if two runs were in the log: give one run alone"
FEWEST = 3  # steps that can be evenly spaced by more than chance


class OrderError(ValueError):
    """Says that rows cannot be put in order; the message names the first place, and the fix."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds the values of one record, by column, and where it stands in the file."""

    step: int
    values: dict[str, float]
    where: str


def ordered(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Returns one row for each step, ascending. What was done is added to the notes.

    Raises:
      OrderError: the order is not clear, by the rules of this module.
    """
    merged = _merged(rows, notes)
    stretches = _stretches(merged)
    if len(stretches) == 1:
        return merged
    if _again(stretches):
        return _restarted(stretches, notes)
    return _sorted(merged, stretches, notes)


def _merged(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Joins rows of one step that follow each other."""
    merged: list[Row] = []
    several = conflicts = 0
    was_conflict = False
    for _, group in itertools.groupby(rows, key=lambda row: row.step):
        first, *others = group
        values, is_conflict = dict(first.values), False
        for row in others:
            is_conflict |= any(values.get(n, v) != v for n, v in row.values.items())
            values |= row.values
        if is_conflict and was_conflict:
            steps = f"steps {merged[-1].step} and {first.step}"
            raise OrderError(f"{first.where}: {steps} have two values of one column, {MIXED}")
        was_conflict = is_conflict
        several += bool(others)
        conflicts += is_conflict
        merged.append(Row(first.step, values, first.where))
    if several:
        notes.append(f"The rows of one step were merged, for {several} steps.")
    if conflicts:
        notes.append(f"{conflicts} steps have two values of one column; the later one counts.")
    return merged


def _stretches(rows: Sequence[Row]) -> list[list[Row]]:
    """Cuts rows into stretches in which the steps ascend."""
    stretches: list[list[Row]] = []
    for row in rows:
        if not stretches or row.step <= stretches[-1][-1].step:
            stretches.append([])
        stretches[-1].append(row)
    return stretches


def _again(stretches: Sequence[Sequence[Row]]) -> bool:
    """Returns whether a column of a step is recorded in two stretches."""
    seen: set[tuple[int, str]] = set()
    for stretch in stretches:
        here = set(_cells(stretch))
        if here & seen:
            return True
        seen |= here
    return False


def _cells(stretch: Sequence[Row]) -> Iterator[tuple[int, str]]:
    return ((row.step, name) for row in stretch for name in row.values)


def _restarted(stretches: Sequence[list[Row]], notes: list[str]) -> list[Row]:
    """Returns the rows of a run that was restarted: a later stretch replaces what it repeats."""
    kept = list(stretches[0])
    for stretch in stretches[1:]:
        first = stretch[0].step
        dropped = [row for row in kept if row.step >= first]
        start, end = dropped[0].step, min(dropped[-1].step, stretch[-1].step)
        before, after = ([r.step for r in s if start <= r.step <= end] for s in (dropped, stretch))
        if before != after or not set(_cells(dropped)) & set(_cells(stretch)):
            raise OrderError(
                f"{stretch[0].where}: step {first} follows a later step, and {UNCLEAR}"
            )
        kept = [row for row in kept if row.step < first] + stretch
        place = f"step {first} ({stretch[0].where})"
        notes.append(
            f"The run was restarted at {place}: {len(dropped)} earlier records from there on were"
            " dropped."
        )
    return kept


def _sorted(rows: list[Row], stretches: Sequence[list[Row]], notes: list[str]) -> list[Row]:
    """Returns rows in the order of their steps, if they cannot come from a restart."""
    steps = sorted({row.step for row in rows})
    columns = [{name for row in stretch for name in row.values} for stretch in stretches]
    is_split = sum(map(len, columns)) == len(set[str]().union(*columns))
    is_descending = all(len(stretch) == 1 for stretch in stretches) and len(rows) >= FEWEST
    gap = _gap(steps)
    is_even = gap is not None and len(steps) >= FEWEST
    ranges = sorted((stretch[0].step, stretch[-1].step) for stretch in stretches)
    overlap = any(low <= high for (_, high), (low, _) in itertools.pairwise(ranges))
    gaps = {_gap([row.step for row in stretch]) for stretch in stretches if len(stretch) > 1}
    is_offset = overlap and len(gaps) == 1 and gaps.isdisjoint({gap, None})
    if not (is_split or is_descending or (is_even and not is_offset)):
        first = stretches[1][0]
        raise OrderError(f"{first.where}: step {first.step} follows a later step, and {UNCLEAR}")
    notes.append("The rows were out of order, and were sorted by their steps.")
    return [
        Row(step, {n: v for row in group for n, v in row.values.items()}, "")
        for step, group in _by_step(rows)
    ]


def _by_step(rows: Sequence[Row]) -> Iterator[tuple[int, list[Row]]]:
    in_order = sorted(rows, key=lambda row: row.step)
    for step, group in itertools.groupby(in_order, key=lambda row: row.step):
        yield step, list(group)


def _gap(steps: Sequence[int]) -> int | None:
    """Returns the distance of ascending steps; None: they are not evenly spaced."""
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    return gaps.pop() if len(gaps) == 1 else None
