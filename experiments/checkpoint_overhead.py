"""What a checkpoint costs a training: how long the loop waits for it, and how much slower the steps beside it are.

    python -m experiments.checkpoint_overhead --workdir=DIR

Once S steps have filled the buffer, the run is saved at every second multiple of `checkpoint.save_every`; the steps
between the others are what the saved ones are compared with. All ratios are between medians of this one run.
"""

import contextlib
import json
import pathlib
import time

from ml_collections import ConfigDict

from experiments import cli
from staleness_grpo.config import ConfigError

FEWEST_SAVES = 3


def first_saved_step(config: ConfigDict) -> int:
    """The first step that is saved: the buffer is full, and everything is compiled."""
    every = config.checkpoint.save_every
    return every * (config.lag.max_lag // every + 1)


def validate(config: ConfigDict) -> None:
    """Refuses a run too short to be measured. Raises ConfigError."""
    cli.validate_on_this_machine(config)
    needed = first_saved_step(config) + 2 * FEWEST_SAVES * config.checkpoint.save_every
    if config.steps < needed:
        raise ConfigError("steps", config.steps, f"give at least {needed}, for {FEWEST_SAVES} saves after lag.max_lag")


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Trains with a clock around what a save asks of the loop, and sums up."""
    import numpy as np

    from staleness_grpo import metrics, train
    from staleness_grpo.checkpoint import Checkpoints

    first, every = first_saved_step(config), config.checkpoint.save_every
    saved_steps = range(first, config.steps - 2 * every + 1, 2 * every)
    waits = []  # seconds of the loop for each save

    class Timed(Checkpoints):
        def due(self, step):
            return step in saved_steps

        def snapshot(self, run):
            start = time.perf_counter()
            found = super().snapshot(run)
            waits.append(time.perf_counter() - start)
            return found

        def save(self, snapshot):
            start = time.perf_counter()
            super().save(snapshot)
            waits[-1] += time.perf_counter() - start

    checkpoints = Timed(workdir / "checkpoints", config)
    seconds = []
    with contextlib.closing(train.build(config)) as run, (workdir / "metrics.jsonl").open("w") as records:
        for record in train.train(run, config, checkpoints):
            seconds.append(record["time_step"])
            records.write(json.dumps(metrics.plain(record)) + "\n")
    waits = np.array(waits[: len(saved_steps)])  # without the save at the run's end
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
        # Writing goes on beside the steps and takes processor time from them: in steps for each save.
        "slowdown_in_steps": np.median(beside.sum(axis=1) - without.sum(axis=1)) / step_seconds,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures and writes summary.json; a finished workdir is left as it is."""
    from staleness_grpo import metrics

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    metrics.write_run_files(workdir, config)
    summary = metrics.plain(measure(config, workdir))
    metrics.write_json(workdir / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name:22s} {value}")


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/checkpoint_overhead.py", validate=validate)
