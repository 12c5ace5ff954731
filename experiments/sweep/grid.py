"""The cells of a sweep's config, by name, and the check of the config."""

import itertools

import jax
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, require

MAIN = "main"  # the map that the others are compared with


def variant_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of the main map and of each variant, by name, without `variants`."""
    config = config.copy_and_resolve_references()
    variants = config.get("variants", {})
    with config.unlocked():
        if "variants" in config:
            del config.variants
    configs = {MAIN: config}
    for name, differences in variants.items():
        configs[name] = config.copy_and_resolve_references()
        configs[name].update(differences)
    return configs


def cells(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the training config of each cell of one map, by its name within the map."""
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
        configs[f"S{max_lag}-eta{learning_rate:g}-seed{seed}"] = cell
    return configs


def cells_file(name: str) -> str:
    """Returns the name of a map's file of records: cells.jsonl for the main one."""
    return "cells.jsonl" if name == MAIN else f"cells-{name}.jsonl"


def validate(config: ConfigDict) -> None:
    """Refuses a sweep that cannot be run.

    Raises:
      FieldError: names the first field found wrong, with its value. The field of a variant's map
        has `variants.NAME` in front.
    """
    for name, variant in variant_configs(config).items():
        try:
            _validate_map(variant)
        except FieldError as error:
            if name == MAIN:
                raise
            raise error.below(f"variants.{name}") from error


def _validate_map(config: ConfigDict) -> None:
    """Refuses one map that cannot be run. Raises FieldError."""
    from staleness_grpo.sweeps.program import SCHEDULES
    from staleness_grpo.tasks import TEXT_TASKS

    sweep, steps = config.sweep, config.steps

    def check(condition: bool, field: str, hint: str) -> None:
        require(condition, field, hint, field_value(config, field))

    for name in ("max_lags", "learning_rates", "seeds", "horizons"):
        check(len(sweep[name]) > 0, f"sweep.{name}", "give one value or more")
        check(len(set(sweep[name])) == len(sweep[name]), f"sweep.{name}", "give each value once")
    check(max(sweep.max_lags) < steps, "sweep.max_lags", f"give lags below steps={steps}")
    inside = all(1 <= horizon <= steps for horizon in sweep.horizons)
    check(inside, "sweep.horizons", f"give learner steps from 1 to steps={steps}")
    for name in ("num_warm_starts", "chunk_size"):
        check(sweep[name] >= 1, f"sweep.{name}", "give a number >= 1")
    check(sweep.num_workers >= 0, "sweep.num_workers", "give a number >= 0")
    known = config.lag.schedule in SCHEDULES
    check(known, "lag.schedule", f"choose one of {', '.join(SCHEDULES)}")
    compiled = config.task.get("name") not in TEXT_TASKS
    check(compiled, "task.name", "a sweep compiles rewards: give arithmetic")
    unset = config.policy.checkpoint is None
    check(unset, "policy.checkpoint", "a sweep makes its policies: leave it unset")
    whole = config.microbatch_prompts == 0
    check(whole, "microbatch_prompts", "a sweep takes each batch at once: give 0")
    once = config.updates_per_batch == 1
    check(once, "updates_per_batch", "a sweep takes one update per batch: give 1")
    divides = config.eval_every >= 1 and steps % config.eval_every == 0
    check(divides, "eval_every", f"give a divisor of steps={steps}")
    late = sweep.freeze_after >= config.eval_every
    check(late, "sweep.freeze_after", "give a number >= eval_every")
    for cell in cells(config).values():
        validation.validate(cell, jax.device_count())
