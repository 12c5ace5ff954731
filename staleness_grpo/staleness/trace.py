"""Reads lags that were recorded from a run, so that another run replays them exactly.

    {"step": 0, "slot": 0, "behavior_version": 0}
    {"step": 0, "slot": 1, "behavior_version": 0, "time": 12.5}

Each line is a JSON object for one group. Lines may be in any order. Every slot of every step must
occur exactly once. The fields are:

    step              the learner step (optimizer update) that learned from the group
    slot              the group's place in that step's batch, from 0
    behavior_version  the optimizer updates applied when the group was generated
    time              seconds on a clock of the run; optional, ignored by a replay

This command makes a trace file from a trainer's records. SOURCE is a key of `CONVERTERS`:

    python -m staleness_grpo.staleness.trace SOURCE RECORDS.jsonl > trace.jsonl
"""

import dataclasses
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from staleness_grpo.staleness.schedule import Schedule


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
      path: the trace file. Steps and slots beyond those of the run are checked, but not returned.
      num_steps: I, the number of learner steps in the run.
      num_groups: N, the number of groups in each step.
      max_lag: S, the largest lag that is accepted.

    Raises:
      TraceError: a line is malformed, repeats a group of the run, or has a lag that is negative or
        above max_lag. The message names the line. Or the file has a gap, which is a (step, slot)
        that the run needs and no line gives. The message names the first gap.
      OSError: the file cannot be read.
    """
    lags_IxN = np.full((num_steps, num_groups), -1, np.int64)
    with pathlib.Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            step, slot, version = _fields(line, number, ("step", "slot", "behavior_version"))
            if not 0 <= version <= step:
                raise TraceError(
                    f"line {number}: step {step} cannot learn from behavior version {version}"
                )
            if step - version > max_lag:
                raise TraceError(f"line {number}: lag {step - version} is above max_lag={max_lag}")
            if slot < 0:
                raise TraceError(f"line {number}: slot {slot} is negative")
            if step >= num_steps or slot >= num_groups:
                continue
            if lags_IxN[step, slot] >= 0:
                raise TraceError(f"line {number}: step {step}, slot {slot} is given a second time")
            lags_IxN[step, slot] = step - version
    gaps = np.argwhere(lags_IxN < 0)
    if len(gaps):
        step, slot = gaps[0]
        raise TraceError(f"{len(gaps)} gaps; the first is step {step}, slot {slot}: add its line")
    return lags_IxN


def _fields(line: str, number: int, names: tuple[str, ...]) -> list[int]:
    """Returns the named fields of a line. Raises TraceError if one is not an integer."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise TraceError(f"line {number}: the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TraceError(f"line {number}: the line is not a JSON object")
    for name in names:
        if type(record.get(name)) is not int:
            value = record.get(name, "absent")
            raise TraceError(f"line {number}: {name} is {value!r}, not an integer")
    return [record[name] for name in names]


def from_run(lines: Iterable[str]) -> Iterator[dict]:
    """Converts the metrics.jsonl of a training with metrics.lags=True.

    A line is {"step": 3, "lags": [2, 2, 1, 0], ...}. The list has the lag of each slot.
    """
    for number, line in enumerate(lines, start=1):
        (step,) = _fields(line, number, ("step",))
        lags = json.loads(line).get("lags")
        if not isinstance(lags, list) or not all(type(lag) is int for lag in lags):
            hint = "train with metrics.lags=True"
            raise TraceError(f"line {number}: the field lags is not a list of integers: {hint}")
        for slot, lag in enumerate(lags):
            yield {"step": step, "slot": slot, "behavior_version": step - lag}


def from_versions(lines: Iterable[str]) -> Iterator[dict]:
    """Converts lines with the policy version that generated a sample: {"step": 3, "version": 1}.

    `step` and `version` count optimizer updates. Slots are numbered in the order of a step's lines.
    """
    num_lines: dict[int, int] = defaultdict(int)  # lines of each step so far
    for number, line in enumerate(lines, start=1):
        step, version = _fields(line, number, ("step", "version"))
        yield {"step": step, "slot": num_lines[step], "behavior_version": version}
        num_lines[step] += 1


def from_ages(lines: Iterable[str]) -> Iterator[dict]:
    """Converts lines with the age of each sample: {"step": 3, "age": 2}.

    An age is the sample's lag in optimizer updates at the step that learned from the sample. Slots
    are numbered in the order of a step's lines.
    """
    num_lines: dict[int, int] = defaultdict(int)  # lines of each step so far
    for number, line in enumerate(lines, start=1):
        step, age = _fields(line, number, ("step", "age"))
        yield {"step": step, "slot": num_lines[step], "behavior_version": step - age}
        num_lines[step] += 1


CONVERTERS = {"run": from_run, "versions": from_versions, "ages": from_ages}


def main(arguments: list[str]) -> int:
    """Converts the records of a file, prints the trace to stdout, and returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in CONVERTERS:
        sources = ", ".join(CONVERTERS)
        print(f"give two arguments: one of {sources}, and a file of records", file=sys.stderr)
        return 2
    source, path = arguments
    try:
        with pathlib.Path(path).open(encoding="utf-8", errors="replace") as file:
            for record in CONVERTERS[source](file):
                print(json.dumps(record))
    except (OSError, TraceError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
