"""Measures how much time a checkpoint costs a training.

    python -m experiments.checkpoint_overhead --workdir=DIR

There are two costs:

- The loop waits for the snapshot.
- Writing slows down the learner steps that run meanwhile.

S learner steps fill the buffer. After them, the run is saved at every second multiple of
`checkpoint.save_every`. The steps after a save are compared with the steps after the next multiple,
which has no save. All ratios are between medians of this one run.
"""

import contextlib
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.training_only import refuse_training_only
from staleness_grpo.errors import FieldError

MIN_SAVES = 3


def first_saved_step(config: ConfigDict) -> int:
    """Returns the first step with a save.

    By then the buffer is full, and all programs are compiled.
    """
    every = config.checkpoint.save_every
    return every * (config.lag.max_lag // every + 1)


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the config cannot be run, or has too few steps."""
    cli.validate_on_this_machine(config)
    refuse_training_only(config)
    min_steps = first_saved_step(config) + 2 * MIN_SAVES * config.checkpoint.save_every
    if config.steps < min_steps:
        hint = (
            f"give at least {min_steps}, so that there are {MIN_SAVES} saves after step lag.max_lag"
        )
        raise FieldError("steps", hint, config.steps)


class SaveClock:
    """Adds up the time that the loop spends on each save. It does not wait for the devices."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.waits: list[float] = []  # seconds of each save

    def __call__(self, part: str, arrays: Any) -> None:
        """Adds the time since the last call to a save's wait, if `part` belongs to a save."""
        del arrays
        now = time.perf_counter()
        if part == "snapshot":
            self.waits.append(now - self._last)
        elif part == "save":
            self.waits[-1] += now - self._last
        self._last = now


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Runs a training with saves; returns the numbers of summary.json."""
    import numpy as np

    from staleness_grpo.config.build import build_run
    from staleness_grpo.runtime.records import Appender
    from staleness_grpo.training.checkpoint import Checkpoints
    from staleness_grpo.training.loop import train

    first_step, every = first_saved_step(config), config.checkpoint.save_every
    saved_steps = range(first_step, config.steps - 2 * every + 1, 2 * every)

    class CheckpointsAtSavedSteps(Checkpoints):
        """Saves the run at the steps in `saved_steps`, and at no other step."""

        def due(self, step: int) -> bool:
            """Returns whether the run is saved before this step."""
            return step in saved_steps

    checkpoints, clock = CheckpointsAtSavedSteps(workdir / "checkpoints", config), SaveClock()
    seconds = []
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(build_run(config)))
        run.watch_with(clock)
        records = stack.enter_context(Appender(workdir / "metrics.jsonl", num_kept=0))
        for record in train(run, checkpoints):
            seconds.append(record["time_step"])
            records.append(record)
    waits = np.array(clock.waits)
    with_save = np.array([seconds[step : step + every] for step in saved_steps])
    without_save = np.array([seconds[step + every : step + 2 * every] for step in saved_steps])
    step_seconds = np.median(without_save)
    return {
        "saves": len(waits),
        "step_seconds": step_seconds,
        "wait_seconds": np.median(waits),
        "wait_share": np.median(waits) / step_seconds,
        "wait_share_quartiles": np.quantile(waits, [0.25, 0.75]) / step_seconds,
        "wait_share_largest": waits.max() / step_seconds,
        # The checkpoint is written while the next steps run, and takes processor time from them.
        "slowdown_in_steps": np.median(with_save.sum(axis=1) - without_save.sum(axis=1))
        / step_seconds,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the measurement, and writes summary.json."""
    from experiments.common.numbers import write_and_print
    from experiments.common.workdir import write_run_files

    write_run_files(workdir, config)
    write_and_print(measure(config, workdir), workdir)


def command() -> None:
    """Runs the measurement from the command line."""
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/checkpoint_overhead.py",
        validate=validate,
    )
