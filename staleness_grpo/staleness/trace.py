"""Lags recorded from a run, as a file that another run replays exactly.

    {"step": 0, "slot": 0, "behavior_version": 0}
    {"step": 0, "slot": 1, "behavior_version": 0, "time": 12.5}

One JSON object a line, in any order: `step`, the learner step (optimizer update) that learned from the group; `slot`,
its place in that step's batch, from 0; `behavior_version`, the optimizer updates applied when it was generated; and, if
known, `time`, seconds on a clock of the run, which a replay does not read. Every slot of every step must be there once.

    python -m staleness_grpo.staleness.trace SOURCE RECORDS.jsonl > trace.jsonl

makes such a file from what trainers write; SOURCE is a key of `CONVERTERS`.
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
    """A trace that cannot be replayed. The message names the line."""


@dataclasses.dataclass(frozen=True)
class Trace(Schedule):
    """The lags of a file, `lags_TxN` for T learner steps; there is no start-up rule, the file says it all."""

    lags_TxN: np.ndarray = dataclasses.field(kw_only=True)

    def _scheduled_lags(self, steps_Kx1):
        return self.lags_TxN[steps_Kx1[:, 0]]


def read(path: str | pathlib.Path, *, num_steps: int, num_groups: int, max_lag: int) -> np.ndarray:
    """The lags [T, N], int64, of a trace file; later steps and higher slots in the file are not read.

    Raises:
      TraceError: naming the line of a malformed object, a group given twice, a negative lag, one above max_lag; or
        naming the first gap, a (step, slot) that the run needs and no line gives.
      OSError: the file cannot be read.
    """
    lags_TxN = np.full((num_steps, num_groups), -1, np.int64)
    with pathlib.Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            step, slot, version = _fields(line, number, ("step", "slot", "behavior_version"))
            if not 0 <= version <= step:
                raise TraceError(f"line {number}: step {step} cannot learn from behavior version {version}")
            if step - version > max_lag:
                raise TraceError(f"line {number}: lag {step - version} is above max_lag={max_lag}")
            if slot < 0:
                raise TraceError(f"line {number}: slot {slot} is negative")
            if step >= num_steps or slot >= num_groups:
                continue
            if lags_TxN[step, slot] >= 0:
                raise TraceError(f"line {number}: step {step}, slot {slot} is given a second time")
            lags_TxN[step, slot] = step - version
    gaps = np.argwhere(lags_TxN < 0)
    if len(gaps):
        step, slot = gaps[0]
        raise TraceError(f"{len(gaps)} gaps: no line gives step {step}, slot {slot}")
    return lags_TxN


def _fields(line: str, number: int, names: tuple[str, ...]) -> list[int]:
    """These integer fields of one line's object."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise TraceError(f"line {number}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TraceError(f"line {number}: not an object")
    for name in names:
        if type(record.get(name)) is not int:
            raise TraceError(f"line {number}: {name} is {record.get(name, 'absent')!r}, not an integer")
    return [record[name] for name in names]


def from_run(lines: Iterable[str]) -> Iterator[dict]:
    """From a run's own metrics.jsonl, made with metrics.lags=True: {"step": 3, "lags": [2, 2, 1, 0], ...}."""
    for number, line in enumerate(lines, start=1):
        (step,) = _fields(line, number, ("step",))
        lags = json.loads(line).get("lags")
        if not isinstance(lags, list) or not all(type(lag) is int for lag in lags):
            raise TraceError(f"line {number}: no list of integers named lags: train with --config.metrics.lags=True")
        for slot, lag in enumerate(lags):
            yield {"step": step, "slot": slot, "behavior_version": step - lag}


def from_versions(lines: Iterable[str]) -> Iterator[dict]:
    """A line for each sample with the policy version that made it: {"step": 3, "version": 1}.

    `step` counts optimizer updates, as `version` does. Slots are numbered in the order of a step's lines.
    """
    slots = defaultdict(int)
    for number, line in enumerate(lines, start=1):
        step, version = _fields(line, number, ("step", "version"))
        yield {"step": step, "slot": slots[step], "behavior_version": version}
        slots[step] += 1


def from_ages(lines: Iterable[str]) -> Iterator[dict]:
    """A line for each sample with its age in optimizer updates when it was learned from: {"step": 3, "age": 2}."""
    slots = defaultdict(int)
    for number, line in enumerate(lines, start=1):
        step, age = _fields(line, number, ("step", "age"))
        yield {"step": step, "slot": slots[step], "behavior_version": step - age}
        slots[step] += 1


CONVERTERS = {"run": from_run, "versions": from_versions, "ages": from_ages}


def main(arguments: list[str]) -> int:
    """Converts a file to stdout; returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in CONVERTERS:
        print(f"give SOURCE, one of {', '.join(CONVERTERS)}, and a file of records", file=sys.stderr)
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
