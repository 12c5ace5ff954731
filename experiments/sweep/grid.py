"""Makes the config of each cell of a sweep, and checks the sweep's config."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.paired_bias.grid import shortest_text
from experiments.sweep.engine import LOOP, engine
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import describe_type, field_value
from staleness_grpo.errors import FieldError, require
from staleness_grpo.tasks import make_task

MAIN = "main"  # name of the main map, with which the variants are compared
# field of a cell -> field of the sweep that sets it
SWEPT = {
    "seed": "sweep.seeds",
    "warm_start.seed": "sweep.seeds",
    "lag.max_lag": "sweep.max_lags",
    "optimizer.learning_rate": "sweep.learning_rates",
}


def variant_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each map by name: the main map and its variants.

    The returned configs have no section `variants`, and no field can be added to those of variants.

    Raises:
      FieldError: a variant names a field that does not exist, or gives a value of another type.
    """
    config = config.copy_and_resolve_references()
    variants = config.get("variants", {})
    with config.unlocked():
        if "variants" in config:
            del config.variants
    configs = {MAIN: config}
    for name, differences in variants.items():
        configs[name] = config.copy_and_resolve_references()
        configs[name].lock()
        for field, value in _leaves(differences):
            _set(configs[name], field, value, section=f"variants.{name}")
    return configs


def _leaves(differences: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of each field, through all sections."""
    for name, value in differences.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _set(config: ConfigDict, field: str, value: Any, section: str) -> None:
    """Sets a field of a locked config. An error has the section in front of the field's name.

    Raises:
      FieldError: there is no such field, or the value is of another type.
    """
    try:
        config.update_from_flattened_dict({field: value})
    except KeyError as error:
        hint = "there is no field of this name: correct or remove it"
        raise FieldError(f"{section}.{field}", hint, value) from error
    except TypeError as error:
        expected = field_value(config, field)
        hint = "this is a section: give its fields"
        if not isinstance(expected, ConfigDict):
            hint = f"give {describe_type(type(expected), expected)}"
        raise FieldError(f"{section}.{field}", hint, value) from error


def cells(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the training config of each cell of one map, by the cell's name."""
    configs = {}
    sweep = config.sweep
    for seed, max_lag, learning_rate in itertools.product(
        sweep.seeds, sorted(sweep.max_lags), sorted(sweep.learning_rates)
    ):
        cell = config.copy_and_resolve_references()
        with cell.unlocked():
            del cell.sweep
        cell.seed = seed
        cell.warm_start.seed = seed % sweep.num_warm_starts
        cell.lag.max_lag = max_lag
        cell.optimizer.learning_rate = learning_rate
        configs[f"S{max_lag}-eta{shortest_text(learning_rate)}-seed{seed}"] = cell
    return configs


def cells_file(name: str) -> str:
    """Returns the name of the file of a map's records, which is cells.jsonl for the main map."""
    return "cells.jsonl" if name == MAIN else f"cells-{name}.jsonl"


def validate(config: ConfigDict, elsewhere: bool = False) -> None:
    """Refuses a sweep that cannot be run.

    Args:
      config: the sweep's config.
      elsewhere: whether it is meant for another machine, which has as many devices as the mesh.

    Raises:
      FieldError: a field cannot be used. The error names the first one and its value. For a
        variant, the name of the field starts with `variants.NAME`.
    """
    for name, variant in variant_configs(config).items():
        try:
            _validate_map(variant, elsewhere)
        except FieldError as error:
            if name == MAIN:
                raise
            raise error.below(f"variants.{name}") from error


def _validate_map(config: ConfigDict, elsewhere: bool) -> None:
    """Raises FieldError if one map cannot be run; arguments as in `validate`."""
    sweep, steps = config.sweep, config.steps
    num_devices = math.prod(config.mesh.values()) if elsewhere else jax.device_count()

    def check(condition: bool, field: str, hint: str) -> None:
        require(condition, field, hint, field_value(config, field))

    for name in ("max_lags", "learning_rates", "seeds", "horizons"):
        check(len(sweep[name]) > 0, f"sweep.{name}", "give at least one value")
        is_distinct = len(set(sweep[name])) == len(sweep[name])
        check(is_distinct, f"sweep.{name}", "give distinct values")
    check(max(sweep.max_lags) < steps, "sweep.max_lags", f"give only lags below steps={steps}")
    within_training = all(1 <= horizon <= steps for horizon in sweep.horizons)
    check(within_training, "sweep.horizons", f"give only numbers from 1 to steps={steps}")
    for name in ("num_warm_starts", "chunk_size"):
        check(sweep[name] >= 1, f"sweep.{name}", "give a number >= 1")
    check(sweep.num_workers >= 0, "sweep.num_workers", "give a number >= 0")
    divides_steps = config.eval_every >= 1 and steps % config.eval_every == 0
    check(divides_steps, "eval_every", f"give a divisor of steps={steps}")
    freezes_after_evaluation = sweep.freeze_after >= config.eval_every
    hint = f"give a number >= eval_every={config.eval_every}"
    check(freezes_after_evaluation, "sweep.freeze_after", hint)
    evaluates_together = config.heldout.every in (0, config.eval_every)
    hint = f"a sweep evaluates on all problems together: give eval_every={config.eval_every}"
    check(evaluates_together, "heldout.every", hint)
    task: Any = None  # the cells share it, and a task that reads a file takes a minute to make
    for cell in _cells_with_every_value(config):
        try:
            validation.validate(cell, num_devices, task=task)
            if task is None:
                task = make_task(cell.task, cell.policy.checkpoint)
        except FieldError as error:
            if error.field not in SWEPT:
                raise
            raise FieldError(SWEPT[error.field], error.hint, error.value) from error
    if engine(config) == LOOP:
        hint = "only compiled cells are vectorized, and these cells are trainings: give 1"
        check(sweep.chunk_size == 1, "sweep.chunk_size", hint)


def _cells_with_every_value(config: ConfigDict) -> list[ConfigDict]:
    """Returns a few cells in which each lag, learning rate and seed of the grid occurs.

    Whether a cell can be run depends on one of the three at a time. A sweep may have a thousand
    cells, so not every cell is checked.
    """
    found = list(cells(config).values())
    chosen: dict[tuple[str, Any], int] = {}
    for field in ("seed", "lag.max_lag", "optimizer.learning_rate"):
        for number, cell in enumerate(found):
            chosen.setdefault((field, field_value(cell, field)), number)
    return [found[number] for number in sorted(set(chosen.values()))]
