"""Times learner steps of this project and of two peers in turns, on one machine.

    python -m experiments.performance.peers.alternate --workdir=DIR [--rounds=5] [--steps=20]
        [--trl=VENV/bin/python] [--tunix=VENV/bin/python] [--before=CHECKOUT]

- In each round every library has one process, which runs alone. The next round starts again with
  the first library, so a slow hour of the machine is shared by all.
- This project runs twice: by default, and with a device of the sampler on each core.
- --trl and --tunix name the interpreters of the peers' environments. See `trl_step.py` and
  `tunix_step.py` for how to make them. A peer without an interpreter is left out.
- --before names an older checkout of this project, whose benchmark is timed too.

The result is DIR/summary.json, with the median step of each round. DIR/config.json has the flags,
the commit of the older checkout and the peers' versions. No other process should run.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

from staleness_grpo.runtime.environment import describe_environment
from staleness_grpo.runtime.records import write_json

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[2]


def ours(checkout: pathlib.Path, steps: int, num_sampler_devices: int = 0) -> float:
    """Returns the median step of a checkout's benchmark, in seconds."""
    variables, flags = {}, [f"--config.steps={steps}"]
    if num_sampler_devices:
        variables = {"JAX_NUM_CPU_DEVICES": str(num_sampler_devices)}
        flags.append(f"--config.sampler.devices={num_sampler_devices}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.benchmark", f"--workdir={folder}", *flags]
        run(command, checkout, variables)
        summary = pathlib.Path(folder, "summary.json").read_text(encoding="utf-8")
    return json.loads(summary)["step_seconds"]


def peer(script: str, python: str, steps: int) -> dict:
    """Returns what the script of a peer measures, with the time of each step in seconds."""
    printed = run([python, str(HERE / script), f"--steps={steps}"], HERE, {})
    return json.loads(printed.splitlines()[-1])


def run(command: list[str], folder: pathlib.Path, variables: dict[str, str]) -> str:
    """Runs a command in a folder, with further variables, and returns what it printed."""
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | variables,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def summarize(seconds_by_name: dict[str, list[float]]) -> dict:
    """Returns the numbers of summary.json from the median steps of the rounds."""
    medians = {name: statistics.median(times) for name, times in seconds_by_name.items()}
    best = medians["sampler_devices"]
    return {
        "step_seconds": seconds_by_name,
        "median_step_seconds": medians,
        "fastest_and_slowest_round": {
            name: [min(times), max(times)] for name, times in seconds_by_name.items()
        },
        "over_sampler_devices": {name: median / best for name, median in medians.items()},
        "rounds": len(seconds_by_name["sampler_devices"]),
        "cores": len(os.sched_getaffinity(0)),
        "claims": [],
    }


def main() -> None:
    """Reads the flags, runs the rounds, and writes summary.json after each."""
    parser = argparse.ArgumentParser(description="Times learner steps of several libraries.")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each library")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each process")
    parser.add_argument("--trl", help="interpreter of an environment with TRL")
    parser.add_argument("--tunix", help="interpreter of an environment with Tunix")
    parser.add_argument("--before", type=pathlib.Path, help="older checkout of this project")
    flags = parser.parse_args()
    if flags.rounds < 1 or flags.steps < 1:
        parser.error("give --rounds and --steps of at least 1")
    cores = len(os.sched_getaffinity(0))
    settings = {"rounds": flags.rounds, "timed_steps": flags.steps}
    timers = {
        "default": lambda: ours(ROOT, flags.steps),
        "sampler_devices": lambda: ours(ROOT, flags.steps, cores),
    }
    if flags.before:
        before = flags.before.resolve()
        timers["before"] = lambda: ours(before, flags.steps)
        settings["before"] = run(["git", "rev-parse", "--short", "HEAD"], before, {}).strip()

    def timer_of(name: str, python: str) -> Callable[[], float]:
        def timed() -> float:
            measured = peer(f"{name}_step.py", python, flags.steps)
            times = measured.pop("step_seconds")
            settings[name] = measured
            return statistics.median(times)

        return timed

    for name, python in (("trl", flags.trl), ("tunix", flags.tunix)):
        if python:
            timers[name] = timer_of(name, python)
    seconds_by_name: dict[str, list[float]] = {name: [] for name in timers}
    flags.workdir.mkdir(parents=True, exist_ok=True)
    write_json(flags.workdir / "environment.json", describe_environment())
    for index in range(flags.rounds):
        for name, timer in timers.items():
            seconds_by_name[name].append(timer())
            print(f"round {index}: {name} {seconds_by_name[name][-1]:.4f} s", flush=True)
        write_json(flags.workdir / "summary.json", summarize(seconds_by_name))
        write_json(flags.workdir / "config.json", settings)


if __name__ == "__main__":
    main()
