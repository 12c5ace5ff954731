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
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import tests.conftest  # noqa: F401  strict JAX flags and the compile cache of the tests
from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import plain, write_jsonl
from staleness_grpo.training.asynchronous import BackgroundGenerator
from staleness_grpo.training.calls import list_calls
from staleness_grpo.training.loop import train
from tests.helpers.tiny import asynchronous_config


def uneven(seed: int, config: ConfigDict, patience: float):
    """Returns a watch that now and then holds up one of the two threads, never both at once.

    The generator is held up in a call until the learner has read all groups before this call's
    step. The learner is held up until the generator has begun all calls that the newest version may
    answer. So lags are small after the one and large after the other, however fast the machine is.

    Args:
      seed: chooses which calls and updates are held up.
      config: of the run, whose first call is that of step 0.
      patience: seconds after which a thread goes on even so. A save needs that, since the learner
        then waits for the call in flight.
    """
    choose = {part: random.Random(f"{seed} {part}") for part in ("prompts", "update")}
    done, changed, is_held_up = dict(prompts=0, update=0), threading.Condition(), False
    num_calls, max_lag = len(list_calls(config)), config.lag.max_lag
    calls_per_step = num_calls // config.steps

    def watch(part: str, arrays: Any) -> None:
        nonlocal is_held_up
        if part not in done:
            return
        with changed:
            done[part] += 1
            changed.notify_all()
            if choose[part].random() >= 0.3 or is_held_up:
                return
            if part == "prompts":
                other, enough = "update", (done[part] - 1) // calls_per_step
            else:
                steps = done[part] + max_lag  # the newest version may not be published yet
                other, enough = "prompts", min(steps * calls_per_step, num_calls)
            is_held_up = True
            changed.wait_for(lambda: done[other] >= enough, timeout=patience)
            is_held_up = False

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
    run.watch_with(uneven(seed, config, patience=60))

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
