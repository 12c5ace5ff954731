"""Trains each cell of a paired-bias grid in a workdir of its own, and records it."""

import itertools
import math
import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.workdir import SUMMARY
from staleness_grpo.config.defaults import default_config, field_value
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, read_jsonl, write_jsonl


def measure(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Trains what is missing; returns the record of every training, which cells.jsonl has too."""
    from experiments.paired_bias.analysis import cell_record
    from experiments.train.__main__ import draw, main

    cells = []
    for name, cell in trainings(config).items():
        folder = workdir / name
        folder.mkdir(exist_ok=True)
        cli.complete(main, draw, cell, folder)
        records = read_jsonl(folder / "metrics.jsonl")
        cells.append(cell_record(cell, records, read_json(folder / SUMMARY)))
    write_jsonl(workdir / "cells.jsonl", cells)
    return cells


def trainings(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of each training, by the name of its folder."""
    found = {}
    for max_lag, learning_rate in itertools.product(
        config.paired.max_lags, config.paired.learning_rates
    ):
        cell = config.copy_and_resolve_references()
        with cell.unlocked():
            del cell.paired
        cell.lag.max_lag, cell.optimizer.learning_rate = max_lag, learning_rate
        found[f"S{max_lag}-eta{short(learning_rate)}"] = cell
    return found


def short(learning_rate: float) -> str:
    """The learning rate in as few digits as tell it from any other."""
    return (
        f"{learning_rate:g}"
        if float(f"{learning_rate:g}") == learning_rate
        else repr(learning_rate)
    )


def validate(config: ConfigDict) -> None:
    """Refuses what cannot be trained or compared. Raises FieldError."""
    defaults = default_config()
    for flag, trained, kind, accepts, what in (
        ("max_lags", "lag.max_lag", int, lambda lag: lag >= 0, "whole numbers >= 0"),
        (
            "learning_rates",
            "optimizer.learning_rate",
            (int, float),
            lambda rate: 0 < rate < math.inf,
            "numbers > 0",
        ),
    ):
        values = config.paired.get(flag)
        sound = isinstance(values, (tuple, list)) and all(
            isinstance(value, kind) and not isinstance(value, bool) and accepts(value)
            for value in values
        )
        if not sound or not values or len(set(values)) < len(values):
            raise FieldError(f"paired.{flag}", f"give one value or more, each once: {what}", values)
        value = field_value(config, trained)
        if value not in (field_value(defaults, trained), *values):
            raise FieldError(
                trained, f"it is that of no training: leave it out, and give paired.{flag}", value
            )
    if not config.metrics.paired_every:
        raise FieldError(
            "metrics.paired_every", "nothing would be compared: give a number of learner steps", 0
        )
    if config.steps <= max(config.paired.max_lags) + config.metrics.paired_every:
        hint = "no step of the longest lag would be compared: give more than max_lags + metrics.paired_every"
        raise FieldError("steps", hint, config.steps)
    if config.lag.schedule != "constant":
        raise FieldError(
            "lag.schedule",
            "trainings are told apart by their lag: give constant",
            config.lag.schedule,
        )
    for cell in trainings(config).values():
        cli.validate_on_this_machine(cell)
