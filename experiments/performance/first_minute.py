"""Times a first training and steps of the default config's shape, here and in an older checkout.

    python -m experiments.performance.first_minute --workdir=DIR --before=CHECKOUT [--rounds=5]

- In each round each checkout has one process of each kind, which runs alone: `cold`, the command
  `python -m experiments.train` without compiled programs and warm start; `step`, the benchmark at
  the shape of the default config; `step_one_core`, the same on one core, as in a sweep.
- The checkouts take turns, so a slow hour of the machine is shared by both.

The result is DIR/summary.json, with the seconds of each round. No other process should run.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import numpy as np

from experiments.performance.peers.alternate import run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.environment import describe_environment
from staleness_grpo.runtime.records import write_json
from staleness_grpo.tasks import make_task

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 100  # that the benchmark times


def main() -> None:
    """Reads the flags, runs the rounds, and writes summary.json after each."""
    parser = argparse.ArgumentParser(description="Times a first training and a step in turns.")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--before", type=pathlib.Path, required=True, help="an older checkout")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind")
    flags = parser.parse_args()
    if flags.rounds < 1:
        parser.error("give --rounds of at least 1")
    before = flags.before.resolve()
    commit = run(["git", "rev-parse", "--short", "HEAD"], before, {})
    flags.workdir.mkdir(parents=True, exist_ok=True)
    settings = {"first_trainings": flags.rounds, "timed_steps": STEPS, "before": commit.strip()}
    write_json(flags.workdir / "config.json", settings)
    write_json(flags.workdir / "environment.json", describe_environment())
    rounds: list[dict[str, float]] = []
    for index in range(flags.rounds):
        measured: dict[str, float] = {}
        for name, checkout in (("before", before), ("now", ROOT)):
            numbers = {**cold(checkout), **step(checkout), **step(checkout, one_core=True)}
            measured |= {f"{key}.{name}": value for key, value in numbers.items()}
        rounds.append(measured)
        print(f"round {index}: {measured}", flush=True)
        write_json(flags.workdir / "summary.json", summarize(rounds))


def cold(checkout: pathlib.Path) -> dict[str, float]:
    """Returns the seconds of a first training, and of all its cores together."""
    with tempfile.TemporaryDirectory() as folder:
        variables = {"XDG_CACHE_HOME": folder, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        start, used = time.perf_counter(), _used()
        command = [sys.executable, "-m", "experiments.train", f"--workdir={folder}/run"]
        run(command, checkout, variables)
        return {"cold_seconds": time.perf_counter() - start, "cold_core_seconds": _used() - used}


def step(checkout: pathlib.Path, one_core: bool = False) -> dict[str, float]:
    """Returns the median seconds of a step of the default config's shape, and of its parts."""
    config = default_config()
    task = make_task(config.task)
    shape = {
        "steps": STEPS,
        "num_prompts": config.num_prompts,
        "policy.d_model": config.policy.d_model,
        "policy.d_ff": config.policy.d_ff,
        "policy.head_dim": config.policy.head_dim,
        "benchmark.prompt_length": task.prompts(np.zeros(1, int)).tokens_NxP.shape[1],
        "benchmark.max_response_length": task.max_response_length,
        "benchmark.vocab_size": task.vocab_size,
    }
    words = [f"--config.{name}={value}" for name, value in shape.items()]
    with tempfile.TemporaryDirectory() as folder:
        usable = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(usable)} if one_core else usable)  # the process inherits it
        try:
            command = [sys.executable, "-m", "experiments.benchmark", f"--workdir={folder}", *words]
            run(command, checkout, {})
        finally:
            os.sched_setaffinity(0, usable)
        summary = json.loads(pathlib.Path(folder, "summary.json").read_text(encoding="utf-8"))
    suffix = "_on_one_core" if one_core else ""
    names = ("step_seconds", "sampling_seconds", "update_seconds")
    return {f"{name}{suffix}": summary[name] for name in names}


def summarize(rounds: list[dict[str, float]]) -> dict:
    """Returns medians over the rounds, and `now_over_before`, the medians of the rounds' ratios."""
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    ratios = {
        key: statistics.median(each[f"{key}.now"] / each[f"{key}.before"] for each in rounds)
        for key in (name.removesuffix(".now") for name in medians if name.endswith(".now"))
    }
    return {
        "seconds": {name: [each[name] for each in rounds] for name in rounds[0]},
        "median_seconds": medians,
        "now_over_before": ratios,
        "rounds": len(rounds),
        "cores": len(os.sched_getaffinity(0)),
        "claims": [],
    }


def _used() -> float:
    """Returns the core seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
