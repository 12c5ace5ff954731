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

    python -m staleness_grpo.staleness.trace SOURCE RECORDS.jsonl [OPTIONS] > trace.jsonl

    --first_step=1     the records count learner steps from 1
    --first_version=1  the records count policy versions from 1
    --num_groups=64    the steps have different numbers of groups; see `with_num_groups`
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TextIO

import numpy as np

from staleness_grpo.runtime.records import TwiceError, fields_given_once
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
    with _open(path) as file:
        for number, line in _numbered(file):
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
        reason = f"{len(gaps)} gaps; the first is step {step}, slot {slot}"
        raise TraceError(f"{reason}: add its line{_hint(lags_IxN)}")
    return lags_IxN


def _hint(lags_IxN: np.ndarray) -> str:
    """Returns the option of this module's command that closes the gaps, or nothing."""
    groups_I = np.count_nonzero(lags_IxN >= 0, axis=1)
    command = "python -m staleness_grpo.staleness.trace trace"
    if groups_I[0] == 0 and groups_I[1:].any():
        return f"; if steps count from 1, convert it by {command} FILE --first_step=1"
    if 0 < groups_I[0] and (groups_I > 0).all():
        num_groups = lags_IxN.shape[1]
        reason = "if its steps have different numbers of groups"
        return f"; {reason}, convert it by {command} FILE --num_groups={num_groups}"
    return ""


def _open(path: str | pathlib.Path) -> TextIO:
    """Opens a file of JSON lines, with or without a byte-order mark."""
    return pathlib.Path(path).open(encoding="utf-8-sig", errors="replace")


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Returns the lines that are not empty, each with its number from 1."""
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _fields(line: str, number: int, names: tuple[str, ...]) -> list[int]:
    """Returns the named fields of a line. Raises TraceError if one is not a whole number."""
    try:
        record = json.loads(line, object_pairs_hook=fields_given_once)
    except TwiceError as error:
        raise TraceError(f"line {number}: the field {error} is given twice") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"line {number}: the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise TraceError(f"line {number}: the line is not a JSON object")
    return [_whole(record.get(name, "absent"), name, number) for name in names]


def _whole(value: Any, name: str, number: int) -> int:
    """Returns a value as an int. Some tools write all numbers as floats, so 3.0 is accepted."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    raise TraceError(f"line {number}: {name} is {value!r}, not an integer")


def from_trace(lines: Iterable[str]) -> Iterator[dict]:
    """Reads a trace, for the options of this module's command. The field `time` is left out."""
    for number, line in _numbered(lines):
        step, slot, version = _fields(line, number, ("step", "slot", "behavior_version"))
        yield {"step": step, "slot": slot, "behavior_version": version}


def from_run(lines: Iterable[str]) -> Iterator[dict]:
    """Converts the metrics.jsonl of a training with metrics.lags=True.

    A line is {"step": 3, "lags": [2, 2, 1, 0], ...}. The list has the lag of each slot.
    """
    for number, line in _numbered(lines):
        (step,) = _fields(line, number, ("step",))
        lags = json.loads(line).get("lags")
        if not isinstance(lags, list):
            hint = "train with metrics.lags=True"
            raise TraceError(f"line {number}: the field lags is not a list of integers: {hint}")
        for slot, lag in enumerate(lags):
            version = step - _whole(lag, "a lag", number)
            yield {"step": step, "slot": slot, "behavior_version": version}


def from_versions(lines: Iterable[str]) -> Iterator[dict]:
    """Converts lines with the policy version that generated a sample: {"step": 3, "version": 1}.

    `step` and `version` count optimizer updates. Slots are numbered in the order of a step's lines.
    """
    num_lines: dict[int, int] = defaultdict(int)  # lines of each step so far
    for number, line in _numbered(lines):
        step, version = _fields(line, number, ("step", "version"))
        yield {"step": step, "slot": num_lines[step], "behavior_version": version}
        num_lines[step] += 1


def from_ages(lines: Iterable[str]) -> Iterator[dict]:
    """Converts lines with the age of each sample: {"step": 3, "age": 2}.

    An age is the sample's lag in optimizer updates at the step that learned from the sample. Slots
    are numbered in the order of a step's lines.
    """
    num_lines: dict[int, int] = defaultdict(int)  # lines of each step so far
    for number, line in _numbered(lines):
        step, age = _fields(line, number, ("step", "age"))
        yield {"step": step, "slot": num_lines[step], "behavior_version": step - age}
        num_lines[step] += 1


CONVERTERS = {
    "run": from_run,
    "versions": from_versions,
    "ages": from_ages,
    "trace": from_trace,
}
AGES = ("run", "ages")  # sources that give lags, in which the first version has no part


def counted_from_zero(
    records: Iterable[dict], first_step: int, first_version: int
) -> Iterator[dict]:
    """Subtracts the number of the first step from each step, and so for the versions."""
    for record in records:
        yield record | {
            "step": record["step"] - first_step,
            "behavior_version": record["behavior_version"] - first_version,
        }


def with_num_groups(records: Iterable[dict], num_groups: int) -> Iterator[dict]:
    """Gives every step `num_groups` groups, N.

    The n groups of a step are taken in their order. Slot i gets the version of group
    floor(i n / N). So with n > N, groups are left out at equal distances. With n < N, groups are
    repeated.
    """
    by_step: dict[int, list[dict]] = defaultdict(list)
    for record in records:
        by_step[record["step"]].append(record)
    for step, groups in sorted(by_step.items()):
        groups.sort(key=lambda record: record["slot"])
        for slot in range(num_groups):
            group = groups[slot * len(groups) // num_groups]
            yield {"step": step, "slot": slot, "behavior_version": group["behavior_version"]}


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and the form of the command, and exits with code 2."""
        form = f"SOURCE ({', '.join(CONVERTERS)}), FILE and options"
        print(f"{message}: give {form}; --help explains them", file=sys.stderr)
        sys.exit(2)


def main(arguments: list[str]) -> int:
    """Converts the records of a file, prints the trace to stdout, and returns the exit code."""
    parser = _Parser(prog="python -m staleness_grpo.staleness.trace", allow_abbrev=False)
    parser.add_argument("source", choices=CONVERTERS, help="the kind of the records")
    parser.add_argument("path", metavar="FILE", help="a JSON-lines file")
    help_text = "number of the first learner step in the records"
    parser.add_argument("--first_step", type=int, default=0, help=help_text)
    help_text = "number of the policy version before the first learner step"
    parser.add_argument("--first_version", type=int, default=0, help=help_text)
    help_text = "number of groups that every step gets; needed if steps have different numbers"
    parser.add_argument("--num_groups", type=int, help=help_text)
    options = parser.parse_args(arguments)
    if options.num_groups is not None and options.num_groups < 1:
        parser.error(f"--num_groups={options.num_groups} is not >= 1")
    # A lag is the same however steps are counted, so steps and versions move together.
    given_as_lags = options.source in AGES
    first_version = options.first_step if given_as_lags else options.first_version
    try:
        with _open(options.path) as file:
            records = CONVERTERS[options.source](file)
            records = counted_from_zero(records, options.first_step, first_version)
            if options.num_groups is not None:
                records = with_num_groups(records, options.num_groups)
            for record in records:
                print(json.dumps(record))
    except (OSError, TraceError) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
