"""Reads lags that were recorded from a run, so that another run replays them exactly.

    {"step": 0, "slot": 0, "behavior_version": 0}
    {"step": 0, "slot": 1, "behavior_version": 0, "time": 12.5}

Each line is a JSON object for one group. Lines may be in any order. Every slot of every step must
occur exactly once without a position. The fields are:

    step              the learner step (optimizer update) that learned from the group
    slot              the group's place in that step's batch, from 0
    behavior_version  the optimizer updates applied when the group was generated
    time              seconds on a clock of the run; optional, ignored by a replay
    position          only where weights changed within the group: the first position of its
                      responses, from 0, that this version sampled

The first line may be {"header": {...}}, which says where the lags come from. A replay ignores it.
`staleness_grpo.staleness.converters` makes traces from what trainers record.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TextIO

import numpy as np

from staleness_grpo.errors import counted
from staleness_grpo.runtime.records import TwiceError, fields_given_once
from staleness_grpo.staleness.schedule import Schedule

HEADER = "header"  # the one field of a first line that is about the whole trace
POSITION = "position"  # the field of a line that says where new weights begin


class Change(NamedTuple):
    """Says that a newer version samples the responses of a group from a position on."""

    position: int  # at least 1
    version: int


def position_versions(changes: Sequence[Change], length: int) -> np.ndarray:
    """Returns the version that sampled each position of a group, [length], int32.

    Args:
      changes: the versions in order. The first has position 0.
      length: R.
    """
    versions = np.zeros(length, np.int32)
    for position, version in changes:
        versions[position:] = version
    return versions


class TraceError(ValueError):
    """Says that a trace cannot be replayed, and names the line or the first gap."""


@dataclasses.dataclass(frozen=True)
class Trace(Schedule):
    """A schedule that replays the lags of a trace, including the lags of the first steps."""

    lags_IxN: np.ndarray = dataclasses.field(kw_only=True)  # the lags of I learner steps

    def _scheduled_lags(self, steps_Ix1: np.ndarray) -> np.ndarray:
        return self.lags_IxN[steps_Ix1[:, 0]]


def read(path: str | pathlib.Path, *, num_steps: int, num_groups: int, max_lag: int) -> np.ndarray:
    """Reads the lags [I, N], int64, of a trace file.

    Args:
      path: the trace file. Steps beyond those of the run are checked, but not returned.
      num_steps: I, the number of learner steps in the run.
      num_groups: N, the number of groups in each step.
      max_lag: S, the largest lag that is accepted.

    Raises:
      TraceError: a line is malformed, repeats a group of the run, has a lag that is negative or
        above max_lag, or a slot that the run has not. The message names the line. Or the file has a
        gap, which is a (step, slot) that the run needs and no line gives. The message names the
        first gap.
      OSError: the file cannot be read.
    """
    lags_IxN = np.full((num_steps, num_groups), -1, np.int64)
    with _open(path) as file:
        for number, record in _group_lines(file):
            step, slot, version = _place(record, f"line {number}")
            if POSITION in record:
                continue
            if step - version > max_lag:
                raise TraceError(f"line {number}: lag {step - version} is above max_lag={max_lag}")
            if step >= num_steps:
                continue
            if slot >= num_groups:
                reason = (
                    f"slot {slot} is above {num_groups - 1}, the last of num_prompts={num_groups}"
                )
                hint = (
                    f"give all groups, or convert it with --format=trace --num_groups={num_groups}"
                )
                raise TraceError(f"line {number}: {reason}: {hint} (docs/traces.md)")
            if lags_IxN[step, slot] >= 0:
                raise TraceError(f"line {number}: step {step}, slot {slot} is given a second time")
            lags_IxN[step, slot] = step - version
    gaps = np.argwhere(lags_IxN < 0)
    if len(gaps):
        step, slot = gaps[0]
        reason = f"{len(gaps)} gaps; the first is step {step}, slot {slot}"
        raise TraceError(f"{reason}: add its line{_hint(lags_IxN)}")
    return lags_IxN


def read_changes(
    path: str | pathlib.Path, lags_IxN: np.ndarray, at_once: int
) -> dict[tuple[int, int], list[Change]]:
    """Reads where weights changed within groups.

    Args:
      path: a trace file that `read` accepts.
      lags_IxN: what `read` returns.
      at_once: how many neighboring groups are sampled at once, and so change together.

    Returns:
      For each (step, first slot) of such neighbors that had a change, their changes in order.

    Raises:
      TraceError: a line is malformed, the versions of a group do not rise with the position, or
        neighbors differ.
      OSError: the file cannot be read.
    """
    changes: dict[tuple[int, int], list[Change]] = {}
    with _open(path) as file:
        for number, record in _group_lines(file):
            if POSITION not in record:
                continue
            step, slot, version = _place(record, f"line {number}")
            position = whole(record, POSITION, f"line {number}")
            if position < 1:
                raise TraceError(f"line {number}: no change can be at position {position}")
            if step < lags_IxN.shape[0] and slot < lags_IxN.shape[1]:
                changes.setdefault((step, slot), []).append(Change(position, version))
    for (step, slot), found in changes.items():
        found.sort()
        places = [Change(0, int(step - lags_IxN[step, slot])), *found]
        if any(a.position == b.position or a.version >= b.version for a, b in pairwise(places)):
            given = ", ".join(f"{version} from {position}" for position, version in places)
            reason = f"its versions do not rise with the position: {given}"
            raise TraceError(f"step {step}, slot {slot}: {reason}")
    for step, slot in changes:
        first = slot - slot % at_once
        neighbors = [changes.get((step, other)) for other in range(first, first + at_once)]
        if neighbors.count(changes[step, slot]) < at_once:
            together = counted(at_once, "neighboring group")
            reason = f"weights change in it and not in all of its {together}"
            raise TraceError(f"step {step}, slot {slot}: {reason}: give the flags of the run")
    return {place: found for place, found in changes.items() if place[1] % at_once == 0}


def check_calls(lags_IxN: np.ndarray, at_once: int) -> None:
    """Raises TraceError if groups that are sampled at once begin with different versions."""
    lags = lags_IxN.reshape(len(lags_IxN), -1, at_once)
    different = np.argwhere((lags != lags[:, :, :1]).any(axis=2))
    if len(different):
        step, call = different[0]
        together = counted(at_once, "neighboring group")
        reason = f"its {together} begin with different versions, but are sampled at once"
        hint = "give the flags of the run that made the trace"
        raise TraceError(f"step {step}, slot {call * at_once}: {reason}: {hint}")


def _place(record: dict[str, Any], where: str) -> tuple[int, int, int]:
    """Returns step, slot and behavior version of a line. Raises TraceError if they are wrong."""
    fields = ("step", "slot", "behavior_version")
    step, slot, version = (whole(record, name, where) for name in fields)
    if not 0 <= version <= step:
        raise TraceError(f"{where}: step {step} cannot learn from behavior version {version}")
    if slot < 0:
        raise TraceError(f"{where}: slot {slot} is negative")
    return step, slot, version


def _hint(lags_IxN: np.ndarray) -> str:
    """Returns the option of a conversion that closes the gaps, or nothing."""
    groups_I = np.count_nonzero(lags_IxN >= 0, axis=1)
    command = "convert it with --format=trace"
    if groups_I[0] == 0 and groups_I[1:].any():
        return f"; if steps count from 1, {command} --first_step=1 (docs/traces.md)"
    if 0 < groups_I[0] and (groups_I > 0).all():
        reason = "if its steps have different numbers of groups"
        return f"; {reason}, {command} --num_groups={lags_IxN.shape[1]} (docs/traces.md)"
    return ""


def _open(path: str | pathlib.Path) -> TextIO:
    """Opens a file of JSON lines, with or without a byte-order mark."""
    return pathlib.Path(path).open(encoding="utf-8-sig", errors="replace")


def _group_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Returns the record of each group with the number of its line. The header is left out."""
    is_first = True
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = parsed(line, f"line {number}")
            if not (is_first and set(record) == {HEADER}):
                yield number, record
            is_first = False


def parsed(line: str, where: str) -> dict[str, Any]:
    """Returns the object that a line holds. Raises TraceError, which names the place."""
    try:
        record = json.loads(line, object_pairs_hook=fields_given_once)
    except TwiceError as error:
        raise TraceError(f"{where}: the field {error} is given twice") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TraceError(f"{where}: the line is not a JSON object")
    return record


def whole(record: dict[str, Any], name: str, where: str) -> int:
    """Returns a field as an int. Raises TraceError if it is no whole number.

    Some tools write all numbers as floats, so 3.0 is accepted.
    """
    value = record.get(name, "absent")
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    raise TraceError(f"{where}: {name} is {value!r}, not an integer")
