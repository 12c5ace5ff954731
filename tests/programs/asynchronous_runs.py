"""Trains asynchronously with uneven times, replays each trace, and prints how the two compare.

    python -m tests.programs.asynchronous_runs CASES

CASES is a JSON list of overrides of `asynchronous_config`, by dotted names. The name `fails_at`
beside them is a step at which the trace cannot be written.
Prints a list of {"same_records", "same_state", "lags"}, or {"error"}.
"""

import json
import pathlib
import random
import sys
import tempfile
import threading
import time
from typing import Any

import jax
import numpy as np

import tests.conftest  # noqa: F401  strict JAX flags and the compile cache of the tests
from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import plain, write_jsonl
from staleness_grpo.training.asynchronous import BackgroundGenerator
from staleness_grpo.training.loop import train
from tests.helpers.tiny import asynchronous_config


def uneven(seed: int):
    """Returns a watch that holds the generator's thread and the learner's up now and then.

    The generator is held up until the learner has made two more updates, however fast the machine
    is. If the learner waits for the generator, it is held up for a moment.
    """
    choose, num_updates, changed = random.Random(seed), 0, threading.Condition()

    def watch(part: str, arrays: Any) -> None:
        nonlocal num_updates
        if part not in ("prompts", "update"):
            return
        with changed:
            is_held_up = choose.random() < 0.25
            if part == "update":
                num_updates += 1
                changed.notify_all()
            elif is_held_up:
                later = num_updates + 2
                changed.wait_for(lambda: num_updates >= later, timeout=0.2)
        if part == "update" and is_held_up:
            time.sleep(0.04)

    return watch


def finished(run, **source) -> tuple[list[dict], list[bytes]]:
    """Trains to the end; returns the records without times, and the bytes of the learner state."""
    records = [plain(record) for record in train(run, **source)]
    without_times = [
        {name: value for name, value in record.items() if not name.startswith("time_")}
        for record in records
    ]
    return without_times, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.state)]


def compared(seed: int, overrides: dict, folder: pathlib.Path) -> dict:
    """Runs one case asynchronously and as a replay of its trace."""
    fails_at = overrides.pop("fails_at", None)
    config = asynchronous_config(**overrides)
    run, trace = build_run(config), []
    run.watch_with(uneven(seed))

    def report(call, position, version):
        if call.step == fails_at:
            raise OSError("no space")
        for slot in call.slots:
            group = {"step": call.step, "slot": slot, "behavior_version": version}
            trace.append(group | ({"position": position} if position else {}))

    try:
        with BackgroundGenerator(run, report) as source:
            live = finished(run, source=source)
    except OSError as error:
        return {"error": str(error)}
    write_jsonl(folder / "trace.jsonl", trace)
    config.lag.schedule, config.lag.trace = "trace", str(folder / "trace.jsonl")
    replayed = finished(build_run(config))
    return {
        "same_records": live[0] == replayed[0],
        "same_state": live[1] == replayed[1],
        "lags": [g["step"] - g["behavior_version"] for g in trace if "position" not in g],
        "changes": [g["position"] for g in trace if "position" in g],
        "records": live[0],
    }


if __name__ == "__main__":
    results = []
    for seed, overrides in enumerate(json.loads(sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder:
            results.append(compared(seed, overrides, pathlib.Path(folder)))
    print(json.dumps(plain(results)))
