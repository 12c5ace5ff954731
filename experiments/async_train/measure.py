"""Trains asynchronously in a workdir, and writes the version of every group to trace.jsonl."""

import contextlib
import pathlib
import time
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from experiments.async_train.analysis import summarize
from experiments.train import measure as training
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import Appender, read_jsonl
from staleness_grpo.staleness.trace import POSITION, Change, TraceError, position_versions
from staleness_grpo.training.asynchronous import BackgroundGenerator
from staleness_grpo.training.calls import Call, list_calls, num_answered
from staleness_grpo.training.run import Run

TRACE = "trace.jsonl"
FIELDS = ("step", "slot", "behavior_version")


def measure(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Starts or continues the training in a workdir. Raises what `train.measure.measure` raises."""
    training.measure(config, workdir, open_generator, lambda records: summarize(records, config))


@contextlib.contextmanager
def open_generator(run: Run, workdir: pathlib.Path) -> Iterator[BackgroundGenerator]:
    """Starts the generator of a run, which adds to the trace of the workdir.

    Calls of the trace that the run does not have are made again, by the versions of the trace.

    Raises:
      FlagError: the trace does not belong to the checkpoint that the run was restored from.
    """
    path, calls = workdir / TRACE, list_calls(run.config)
    given, num_kept = read_calls(path, calls) if path.exists() else ([], 0)
    check_versions(run, workdir, given)
    with Appender(path, num_kept=num_kept) as file:

        def report(call: Call, position: int, version: int) -> None:
            now = time.time()
            for slot in call.slots:
                record = dict(zip(FIELDS, (call.step, slot, version), strict=True))
                if position:
                    record[POSITION] = position
                file.append(record | {"time": now})

        with BackgroundGenerator(run, report, dict(enumerate(given))) as generator:
            try:
                yield generator
            except TraceError as error:
                raise FlagError("workdir", workdir, f"{TRACE}: {error}") from error


def read_calls(path: pathlib.Path, calls: list[Call]) -> tuple[list[list[Change]], int]:
    """Reads the versions of the calls of a trace, up to lines that a kill left incomplete.

    Returns:
      For each call that had started, its versions with the positions from which they sample; and
      the number of lines that these are in.
    """
    records = read_jsonl(path)
    found: list[list[Change]] = []
    start = 0
    while start < len(records):
        position, version = (records[start].get(name, 0) for name in (POSITION, FIELDS[2]))
        place = len(found) - bool(position)
        if not 0 <= place < len(calls):
            break
        step, slots = calls[place]
        expected = [(step, slot, version, position) for slot in slots]
        lines = records[start : start + len(slots)]
        if [tuple(line.get(name, 0) for name in (*FIELDS, POSITION)) for line in lines] != expected:
            break
        if position:
            found[place].append(Change(position, version))
        else:
            found.append([Change(0, version)])
        start += len(slots)
    return found, start


def check_versions(run: Run, workdir: pathlib.Path, given: list[list[Change]]) -> None:
    """Raises FlagError unless the versions of a trace are those of a restored run.

    The trace must have all groups that the run has read or holds, with the same versions. Later
    calls cannot have versions that the run has passed, because their parameters are gone.
    """
    answered = num_answered(run)
    _, _, versions_W, rollout = run.buffer.unread()
    at_once = len(list_calls(run.config)[0].slots)
    held = given[answered - len(versions_W) // at_once : answered]
    first = np.repeat([changes[0].version for changes in held], at_once)
    agrees = np.array_equal(first, versions_W)
    if agrees and held and rollout.token_version_NxR is not None:
        length = rollout.token_version_NxR.shape[1]
        tokens = np.array([position_versions(changes, length) for changes in held])
        agrees = np.array_equal(np.repeat(tokens, at_once, axis=0), rollout.token_version_NxR)
    is_known = all(changes[0].version >= run.step for changes in given[answered:])
    if len(given) < answered or not agrees or not is_known:
        reason = f"{TRACE} does not belong to the checkpoint of step {run.step}"
        hint = "restore the complete file, or give another folder"
        raise FlagError("workdir", workdir, f"{reason}: {hint}")
