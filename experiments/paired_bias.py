"""Gradient bias of stale rollouts during training, where nothing can be enumerated: real models, real tasks.

    python -m experiments.paired_bias --workdir=DIR [--config=experiments/configs/stories260k_cpu.py ...]

One training for each lag and learning rate of `config.paired`, each a workdir of `experiments.train` below DIR, with
`metrics.paired_every` as in the config: at those steps the batch is answered again by the current policy, with the same
noise, and the two gradients are compared. cells.jsonl has one line for each training; a second call trains what is
missing and draws the figures again.
"""

import itertools
import json
import math
import pathlib

from ml_collections import ConfigDict

from experiments import cli
from staleness_grpo import config as config_lib
from staleness_grpo.config import ConfigError


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what is missing, then analyses and draws everything."""
    from experiments import paired_summary, train
    from experiments.figures import paired as figures
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    cells = []
    for name, cell in trainings(config).items():
        train.main(cell, workdir / name)
        summary = json.loads((workdir / name / "summary.json").read_text())
        cells.append(paired_summary.cell(cell, metrics.read_jsonl(workdir / name / "metrics.jsonl"), summary))
    (workdir / "cells.jsonl").write_text("".join(json.dumps(metrics.plain(cell)) + "\n" for cell in cells))
    metrics.write_json(workdir / "summary.json", paired_summary.summarize(cells))
    print(figures.draw(workdir))
    print(workdir / "summary.json")


def trainings(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of each training, by the name of its folder."""
    found = {}
    for max_lag, learning_rate in itertools.product(config.paired.max_lags, config.paired.learning_rates):
        cell = config.copy_and_resolve_references()
        with cell.unlocked():
            del cell.paired
        cell.lag.max_lag, cell.optimizer.learning_rate = max_lag, learning_rate
        found[f"S{max_lag}-eta{short(learning_rate)}"] = cell
    return found


def short(learning_rate: float) -> str:
    """The learning rate in as few digits as tell it from any other."""
    return f"{learning_rate:g}" if float(f"{learning_rate:g}") == learning_rate else repr(learning_rate)


def validate(config: ConfigDict) -> None:
    """Refuses what cannot be trained or compared. Raises ConfigError."""
    defaults = config_lib.default()
    for flag, trained, kind, accepts, what in (
        ("max_lags", "lag.max_lag", int, lambda lag: lag >= 0, "whole numbers >= 0"),
        ("learning_rates", "optimizer.learning_rate", (int, float), lambda rate: 0 < rate < math.inf, "numbers > 0"),
    ):
        values = config.paired.get(flag)
        sound = isinstance(values, (tuple, list)) and all(
            isinstance(value, kind) and not isinstance(value, bool) and accepts(value) for value in values
        )
        if not sound or not values or len(set(values)) < len(values):
            raise ConfigError(f"paired.{flag}", values, f"give one value or more, each once: {what}")
        value = config_lib.field(config, trained)
        if value not in (config_lib.field(defaults, trained), *values):
            raise ConfigError(trained, value, f"it is that of no training: leave it out, and give paired.{flag}")
    if not config.metrics.paired_every:
        raise ConfigError("metrics.paired_every", 0, "nothing would be compared: give a number of learner steps")
    if config.steps <= max(config.paired.max_lags) + config.metrics.paired_every:
        mend = "no step of the longest lag would be compared: give more than max_lags + metrics.paired_every"
        raise ConfigError("steps", config.steps, mend)
    if config.lag.schedule != "constant":
        raise ConfigError("lag.schedule", config.lag.schedule, "trainings are told apart by their lag: give constant")
    for cell in trainings(config).values():
        cli.validate_on_this_machine(cell)


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/paired_bias.py", validate=validate)
