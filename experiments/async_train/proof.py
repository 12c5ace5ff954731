"""Kills asynchronous runs at random moments, lets them end, and replays their traces.

    python -m experiments.async_proof --workdir=DIR --config.proof.stories=FOLDER

Every run is a process of its own, started as a user would start it. A run is killed by SIGKILL and
started again until it had its kills. Then `experiments.train` replays its trace. The metrics and
parameters of the two must be the same bytes.

A call on an unfinished workdir makes only the runs that have no record yet.
"""

import pathlib
import random
import subprocess
import sys
import time
from concurrent import futures

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.workdir import SUMMARY
from staleness_grpo.errors import require

CONFIG = "experiments/configs/async_proof.py"
RECORDS = "cells.jsonl"
SHOWN = (
    "learner_steps",
    "lag_mean",
    "lag_max",
    "lag_histogram",
    "waiting_share",
    "token_lag_mean",
    "in_flight_share",
)
STORIES = {"task.name": "stories", "task.rule": "mentions", "task.max_response_length": 24}
STORIES |= {"optimizer.learning_rate": 1e-4, "warm_start.steps": 0}
IN_FLIGHT = {"asynchronous.in_flight": "continue", "asynchronous.look_every": 4}
# name -> the fields of a run that differ from the config
RUNS: dict[str, dict] = {
    "sums_bounded_4": {"asynchronous.admission": "bounded", "lag.max_lag": 4},
    "sums_bounded_16": {"asynchronous.admission": "bounded", "lag.max_lag": 16, "seed": 1},
    "sums_in_order_3": {"asynchronous.admission": "in_order", "lag.max_lag": 3},
    "sums_continue_4": {"lag.max_lag": 4, "seed": 2, **IN_FLIGHT, "asynchronous.look_every": 1},
    "stories_bounded_8": {"asynchronous.admission": "bounded", "lag.max_lag": 8, **STORIES},
    "stories_continue_8": {"lag.max_lag": 8, "seed": 3, **IN_FLIGHT, **STORIES},
    "stories_recompute_8": {
        "lag.max_lag": 8,
        "seed": 4,
        **IN_FLIGHT,
        **STORIES,
        "asynchronous.in_flight": "recompute",
    },
    "stories_one_step_off": {
        "asynchronous.admission": "one_step_off",
        "lag.max_lag": 1,
        **STORIES,
    },
}


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the runs on stories have no model folder, or a number is too small."""
    folder = config.proof.stories
    hint = "give the model folder of stories260k, for the runs on stories"
    files = ("config.json", "tokenizer.json")
    is_model = folder is not None and all((pathlib.Path(folder) / f).is_file() for f in files)
    require(is_model, "proof.stories", hint, folder)
    for name, bound in (("kills", 0), ("workers", 1)):
        value = config.proof[name]
        require(value >= bound, f"proof.{name}", f"give a number >= {bound}", value)


def flags(config: ConfigDict, name: str) -> list[str]:
    """Returns the flags of a run, which are those of this call and those of RUNS."""
    from experiments.common.flag_parsing import load_config
    from staleness_grpo.runtime.records import flattened

    shipped = flattened(load_config(CONFIG).to_dict())
    fields = {
        field: value
        for field, value in flattened(config.to_dict()).items()
        if shipped.get(field) != value and not field.startswith("proof.")
    }
    fields |= RUNS[name]
    if fields.get("task.name") == "stories":
        fields["policy.checkpoint"] = config.proof.stories
    given = [f"--config.{field}={value}" for field, value in fields.items()]
    return [f"--config={CONFIG}", *given]


def start(program: str, arguments: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    """Starts a program of the experiments, whose output goes to a file beside its workdir."""
    command = [sys.executable, "-m", program, *arguments, f"--workdir={workdir}"]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, cwd=cli.ROOT, stdout=log, stderr=log)


def wait_for(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Waits until a process has ended by itself. Raises RuntimeError if it has failed."""
    if process.wait() != 0:
        log = workdir.with_suffix(".log")
        raise RuntimeError(f"{workdir.name} ended with code {process.returncode}: see {log}")


def num_lines(path: pathlib.Path) -> int:
    """Returns the number of whole lines of a file that may not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def num_groups(trace: pathlib.Path) -> int:
    """Returns the number of groups of a trace that may not exist."""
    lines = trace.read_bytes().splitlines() if trace.exists() else []
    return sum(b'"position"' not in line for line in lines)


def run_with_kills(
    config: ConfigDict, name: str, workdir: pathlib.Path, kills: int
) -> dict[str, int]:
    """Runs an asynchronous training that is killed at random moments, and lets it end.

    Returns:
      `kills`, and how many of them struck while groups were in flight: `kills_in_flight`. These
      groups were in the trace and not yet in the metrics.
    """
    choose = random.Random(f"{config.proof.seed} {name}")
    metrics, trace = workdir / "metrics.jsonl", workdir / "trace.jsonl"
    counts = {"kills": 0, "kills_in_flight": 0}
    while counts["kills"] < kills:
        process = start("experiments.async_train", flags(config, name), workdir)
        before = num_lines(metrics)
        span = max(2, (config.steps - before) // (kills - counts["kills"]))
        target = min(before + choose.randint(1, span), config.steps - 1)
        while num_lines(metrics) < target and process.poll() is None:
            time.sleep(0.05)  # reading the file more often would slow the run down
        time.sleep(choose.random() * 0.05)
        if process.poll() is None:
            process.kill()
            process.wait()
            counts["kills"] += 1
            is_in_flight = num_groups(trace) > num_lines(metrics) * config.num_prompts
            counts["kills_in_flight"] += is_in_flight
        else:
            wait_for(process, workdir)
            break
    wait_for(start("experiments.async_train", flags(config, name), workdir), workdir)
    return counts


def measure(config: ConfigDict, workdir: pathlib.Path, name: str) -> dict:
    """Runs, kills and replays one training; returns its record."""
    from experiments.async_train import comparison
    from staleness_grpo.runtime.records import read_json

    live, replay = workdir / name, workdir / f"{name}_replay"
    counts = run_with_kills(config, name, live, config.proof.kills)
    replayed = ["--config.lag.schedule=trace", f"--config.lag.trace={live / 'trace.jsonl'}"]
    wait_for(start("experiments.train", flags(config, name) + replayed, replay), replay)
    summary = read_json(live / SUMMARY)
    return {
        "cell": name,
        **counts,
        **{field: summary[field] for field in SHOWN},
        "trace": comparison.trace_digest(live),
        "max_lag": RUNS[name]["lag.max_lag"],
        "same_metrics": comparison.metrics(live) == comparison.metrics(replay),
        "same_parameters": comparison.parameters(live) == comparison.parameters(replay),
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the runs without a record, then counts those that were replayed to the byte."""
    from experiments.common.numbers import write_and_print
    from experiments.common.workdir import write_run_files
    from staleness_grpo.runtime.records import Appender, read_jsonl

    write_run_files(workdir, config)
    path = workdir / RECORDS
    recorded = {record["cell"] for record in read_jsonl(path)} if path.exists() else set()
    missing = [name for name in RUNS if name not in recorded]
    with (
        Appender(path, durable=True) as file,
        futures.ThreadPoolExecutor(config.proof.workers) as pool,
    ):
        runs = [pool.submit(measure, config, workdir, name) for name in missing]
        for run in futures.as_completed(runs):
            file.append(record := run.result())
            print(record, file=sys.stderr)
    records = read_jsonl(path)
    same = [record["same_metrics"] and record["same_parameters"] for record in records]
    write_and_print(
        {
            "runs": len(records),
            "replayed_to_the_byte": sum(same),
            "different_traces": len({record["trace"] for record in records}),
            "kills": sum(record["kills"] for record in records),
            "kills_in_flight": sum(record["kills_in_flight"] for record in records),
            "within_the_bound": sum(record["lag_max"] <= record["max_lag"] for record in records),
            "cells": records,
        },
        workdir,
    )


def command() -> None:
    """Runs the proof from the command line."""
    cli.run(main, cli.draw_nothing, default_config=CONFIG, validate=validate)
