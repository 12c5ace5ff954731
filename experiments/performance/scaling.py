"""Measures how time and memory of a learner step grow with each size of a training.

    python -m experiments.benchmark --scaling --workdir=DIR

One size grows at a time. Each point has processes of its own, so that it can have its own number of
devices. A call on an unfinished workdir measures only points without a record.
"""

import json
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.performance.accelerator import Programme
from staleness_grpo.errors import require

CONFIG = "experiments/configs/benchmark_scaling.py"
RECORDS = "cells.jsonl"
# size -> the fields that it sets
AXES: dict[str, Any] = {
    "num_prompts": lambda value: {"num_prompts": value},
    "group_size": lambda value: {"group_size": value},
    "prompt_length": lambda value: {"benchmark.prompt_length": value},
    "response_length": lambda value: {"benchmark.max_response_length": value},
    "d_model": lambda value: {
        "policy.d_model": value,
        "policy.head_dim": value // 4,
        "policy.d_ff": 4 * value,
    },
    "vocab_size": lambda value: {"benchmark.vocab_size": value},
    "max_lag": lambda value: {"lag.max_lag": value},
    "devices": lambda value: {"mesh.data": value},
    "processes": lambda value: {"mesh.data": value},  # with a device each
}
# The exponent with which the work of a step grows at most. Attention has pairs of positions.
WORK = {
    "num_prompts": 1,
    "group_size": 1,
    "prompt_length": 2,
    "response_length": 2,
    "d_model": 2,
    "vocab_size": 1,
    "max_lag": 0,
    "devices": 0,
    "processes": 0,
}
MEASURES = (
    "step_seconds",
    "sampling_seconds",
    "update_seconds",
    "host_seconds",
    "peak_bytes",
)
HEARTBEAT_SECONDS = 100  # after which a silent process counts as lost
FITTED = 3  # the largest values of a size that its exponents are fitted to


def validate(config: ConfigDict) -> None:
    """Raises FieldError if a size has no values, or a point cannot be measured."""
    from experiments.performance.benchmark import check_settings
    from experiments.performance.random_tokens import validate_for

    for axis in AXES:
        values = config.scaling[axis]
        are_sizes = len(values) >= 2 and min(values) >= int(axis != "max_lag")
        require(are_sizes, f"scaling.{axis}", "give two or more sizes", values)
    seconds = config.scaling.seconds
    require(seconds > 0, "scaling.seconds", "give a number > 0", seconds)
    check_settings(config)
    for axis, value in points(config):
        validate_for(point_config(config, axis, value), max(config.scaling.devices))


def points(config: ConfigDict) -> list[tuple[str, int]]:
    """Returns the size and the value of each point."""
    return [(axis, value) for axis in AXES for value in config.scaling[axis]]


def point_config(config: ConfigDict, axis: str, value: int) -> ConfigDict:
    """Returns the config of a point, which has no section `scaling`."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.scaling
    config.update_from_flattened_dict(AXES[axis](value))
    config.steps = max(config.steps, config.lag.max_lag + 1)  # a lag is below the number of steps
    return config


def measure_point(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Times the steps of a point, and asks the compiler for its memory.

    Returns:
      MEASURES, `host_share`, `drift_copy_seconds` (the copy of a version) and `state_bytes`.
      `peak_bytes` is that of the largest program, on each device.
    """
    from experiments.performance import benchmark, memory

    timed = benchmark.measure(config, folder)
    longer = config.copy_and_resolve_references()
    longer.steps += 2 * config.lag.max_lag  # so that S versions are in flight
    needed = memory.measure(longer)
    peaks = [program["peak_bytes"] for program in needed["programs"].values()]
    return {
        **{name: timed[name] for name in (*MEASURES[:-1], "host_share", "drift_copy_seconds")},
        "peak_bytes": max(peaks),
        "state_bytes": needed["state_bytes"],
    }


def measure(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Measures the points without a record; returns all records.

    Raises:
      Failed: a point ended with an error, or took too long.
    """
    from staleness_grpo.runtime.progress import Progress
    from staleness_grpo.runtime.records import Appender, read_json, read_jsonl

    path = workdir / RECORDS
    records = read_jsonl(path) if path.exists() else []
    known = {(record["size"], record["value"]) for record in records}
    programme = Programme(config.scaling, workdir, "cpu")
    with (
        Appender(path, num_kept=len(records)) as file,
        Progress("points", len(points(config)), done=len(records)) as progress,
    ):
        for axis, value in points(config):
            if (axis, value) in known:
                continue
            folder = workdir / "points" / f"{axis}_{value}"
            folder.mkdir(parents=True, exist_ok=True)
            chosen = point_config(config, axis, value)
            (folder / "point.json").write_text(chosen.to_json(), encoding="utf-8")
            num_processes = value if axis == "processes" else 1
            environment = {
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(chosen.mesh.data // num_processes),
            }
            words = ("experiments.performance.scaling", str(folder))
            programme.run(
                f"{axis}_{value}", *words, environment=environment, num_processes=num_processes
            )
            record = {"size": axis, "value": value} | read_json(folder / "measured.json")
            file.append(record)
            records.append(record)
            progress.advance(f"{axis}={value}")
    return records


def exponent(values: list[float], measured: list[float]) -> float:
    """Returns the slope of log(measured) in log(value) over the FITTED largest values.

    S = 0 counts as 1, because its buffer holds one step.
    """
    import numpy as np

    last = np.argsort(values)[-FITTED:]
    logs = np.log(np.maximum(np.array(values, float), 1)[last])
    return float(np.polyfit(logs, np.log(np.array(measured)[last]), 1)[0])


def summarize(records: list[dict]) -> dict[str, Any]:
    """Returns the exponents of each size.

    Returns:
      `by_size`: by size, its `values`, each of MEASURES and `drift_copy_seconds` as a list,
        `exponents` of MEASURES, and `work`, the exponent of a step's work.
      `largest_host_share`, `largest_host_share_at`: the largest share of a step that the host
        takes, and the point that has it.
    """
    by_size = {}
    for axis in AXES:
        rows = sorted((r for r in records if r["size"] == axis), key=lambda r: r["value"])
        values = [row["value"] for row in rows]
        measured = {name: [row[name] for row in rows] for name in MEASURES}
        by_size[axis] = {
            "values": values,
            **measured,
            "drift_copy_seconds": [row["drift_copy_seconds"] for row in rows],
            "exponents": {name: exponent(values, measured[name]) for name in MEASURES},
            "work": WORK[axis],
        }
    shares = {f"{r['size']}={r['value']}": r["host_share"] for r in records}
    largest = max(shares, key=lambda name: shares[name])
    return {
        "by_size": by_size,
        "largest_host_share": shares[largest],
        "largest_host_share_at": largest,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures every point, and writes summary.json."""
    from experiments.common.numbers import write_and_print
    from experiments.common.workdir import write_run_files

    write_run_files(workdir, config)
    write_and_print(summarize(measure(config, workdir)), workdir)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws time and memory against each size; returns the PNG files."""
    from experiments.performance import scaling_figures

    return scaling_figures.draw(workdir)


def command() -> None:
    """Runs the measurement from the command line."""
    from experiments.common.devices import leave_to_others

    cli.run(main, draw, default_config=CONFIG, validate=validate, prepare=leave_to_others)


def main_of_point(folder: pathlib.Path) -> None:
    """Measures the point whose config is in a folder, and writes measured.json.

    Of several processes, the first one writes it.
    """
    import jax

    from staleness_grpo.runtime import distributed
    from staleness_grpo.runtime.records import write_json

    hosts = distributed.find(dict.fromkeys(distributed.VARIABLES), os.environ)
    if hosts is not None:
        distributed.start(hosts, HEARTBEAT_SECONDS)
    config = ConfigDict(json.loads((folder / "point.json").read_text(encoding="utf-8")))
    index = jax.process_index()
    own = folder if index == 0 else folder / f"process_{index}"
    own.mkdir(exist_ok=True)
    measured = measure_point(config, own)
    if index == 0:
        write_json(folder / "measured.json", measured)


if __name__ == "__main__":
    import sys

    from staleness_grpo.runtime import allocator, compile_cache

    allocator.keep_freed_memory()  # as the commands do
    compile_cache.enable(cli.ROOT / ".cache" / "jax")
    main_of_point(pathlib.Path(sys.argv[1]))
