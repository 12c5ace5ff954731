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
from staleness_grpo.training.asynchronous import (
    BackgroundGenerator,
    Call,
    list_calls,
    num_answered,
)
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
    versions = read_versions(path, calls) if path.exists() else []
    check_versions(run, workdir, versions)
    given = dict(enumerate(versions))
    with Appender(path, num_kept=len(versions) * len(calls[0].slots)) as file:

        def report_start(step: int, slots: np.ndarray, version: int) -> None:
            now = time.time()
            for slot in slots:
                record = {"step": step, "slot": slot, "behavior_version": version, "time": now}
                file.append(record)

        with BackgroundGenerator(run, report_start, given) as generator:
            yield generator


def read_versions(path: pathlib.Path, calls: list[Call]) -> list[int]:
    """Returns the version of each call of a trace, up to a call that a kill left incomplete."""
    records = read_jsonl(path)
    versions: list[int] = []
    for step, slots in calls:
        start = len(versions) * len(slots)
        groups = [
            tuple(record.get(name, -1) for name in FIELDS)
            for record in records[start : start + len(slots)]
        ]
        version = groups[0][2] if groups else -1
        if groups != [(step, slot, version) for slot in slots]:
            break
        versions.append(version)
    return versions


def check_versions(run: Run, workdir: pathlib.Path, versions: list[int]) -> None:
    """Raises FlagError unless the versions of a trace are those of a restored run.

    The trace must have all groups that the run has read or holds, with the same versions. Later
    calls cannot have versions that the run has passed, because their parameters are gone.
    """
    answered = num_answered(run)
    _, _, versions_W, _ = run.buffer.unread()
    at_once = len(list_calls(run.config)[0].slots)
    num_held = len(versions_W) // at_once
    held = np.repeat(versions[answered - num_held : answered], at_once)
    agrees = np.array_equal(held, versions_W)
    is_known = all(version >= run.step for version in versions[answered:])
    if len(versions) < answered or not agrees or not is_known:
        reason = f"{TRACE} does not belong to the checkpoint of step {run.step}"
        hint = "restore the complete file, or give another folder"
        raise FlagError("workdir", workdir, f"{reason}: {hint}")
