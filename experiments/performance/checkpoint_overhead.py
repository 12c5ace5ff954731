"""Measures what a checkpoint costs: the wait of the loop, and the slowdown of the steps beside it.

    python -m experiments.checkpoint_overhead --workdir=DIR

Once S steps have filled the buffer, the run is saved at every second multiple of
`checkpoint.save_every`. The steps after a multiple that is left out are what the steps after a save
are compared with. All ratios are between medians of this one run.
"""

import contextlib
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.errors import FieldError

FEWEST_SAVES = 3


def first_saved_step(config: ConfigDict) -> int:
    """Returns the first step that is saved: the buffer is full then, and everything is compiled."""
    every = config.checkpoint.save_every
    return every * (config.lag.max_lag // every + 1)


def validate(config: ConfigDict) -> None:
    """Refuses a run that cannot be run, or is too short to be measured. Raises FieldError."""
    cli.validate_on_this_machine(config)
    needed = first_saved_step(config) + 2 * FEWEST_SAVES * config.checkpoint.save_every
    if config.steps < needed:
        hint = f"give at least {needed}, for {FEWEST_SAVES} saves after lag.max_lag"
        raise FieldError("steps", hint, config.steps)


class SaveClock:
    """Adds up the time that the loop spends on each save; does not wait for the devices."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.waits: list[float] = []  # seconds, one number for each save

    def __call__(self, part: str, arrays: Any) -> None:
        """Takes the time since the last call for the wait of a save, if a part of one has ended."""
        del arrays
        now = time.perf_counter()
        if part == "snapshot":
            self.waits.append(now - self._last)
        elif part == "save":
            self.waits[-1] += now - self._last
        self._last = now


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Trains with a clock on what a save asks of the loop, and sums up."""
    import numpy as np

    from staleness_grpo.runtime.records import Appender
    from staleness_grpo.training.checkpoint import Checkpoints
    from staleness_grpo.training.loop import train
    from staleness_grpo.training.run import build_run

    first, every = first_saved_step(config), config.checkpoint.save_every
    saved_steps = range(first, config.steps - 2 * every + 1, 2 * every)

    class AtSavedSteps(Checkpoints):
        """Saves at the chosen steps alone."""

        def due(self, step: int) -> bool:
            """Says whether the run is saved before this step."""
            return step in saved_steps

    checkpoints, clock = AtSavedSteps(workdir / "checkpoints", config), SaveClock()
    seconds = []
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(build_run(config)))
        run.watch_with(clock)
        records = stack.enter_context(Appender(workdir / "metrics.jsonl", num_kept=0))
        for record in train(run, checkpoints):
            seconds.append(record["time_step"])
            records.append(record)
    waits = np.array(clock.waits)
    beside = np.array([seconds[step : step + every] for step in saved_steps])
    without = np.array([seconds[step + every : step + 2 * every] for step in saved_steps])
    step_seconds = np.median(without)
    return {
        "saves": len(waits),
        "step_seconds": step_seconds,
        "wait_seconds": np.median(waits),
        "wait_share": np.median(waits) / step_seconds,
        "wait_share_quartiles": np.quantile(waits, [0.25, 0.75]) / step_seconds,
        "wait_share_largest": waits.max() / step_seconds,
        # Writing goes on beside the steps and takes processor time from them.
        "slowdown_in_steps": np.median(beside.sum(axis=1) - without.sum(axis=1)) / step_seconds,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures and writes summary.json."""
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import plain, write_json

    write_run_files(workdir, config)
    summary = plain(measure(config, workdir)) | {"claims": []}
    write_json(workdir / SUMMARY, summary)
    for name, value in summary.items():
        print(f"{name:22s} {value}")


def command() -> None:
    """Runs the measurement from the command line."""
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/checkpoint_overhead.py",
        validate=validate,
    )
