"""The cells of a sweep's config, by name, and the check of the config."""

import itertools

import jax
from ml_collections import ConfigDict

from staleness_grpo import config as config_lib
from staleness_grpo import validation
from staleness_grpo.config import ConfigError

MAIN = "main"


def variant_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of the main map and of each variant, if there is a list of them, without that list."""
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
    """The training config of each cell of one map, by its name within the map."""
    found = {}
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
        found[f"S{max_lag}-eta{learning_rate:g}-seed{seed}"] = cell
    return found


def validate(config: ConfigDict) -> None:
    """Refuses a sweep that cannot be run. Raises ConfigError."""
    from staleness_grpo.sweep import SCHEDULES
    from staleness_grpo.tasks import TEXT_TASKS

    for name, variant in variant_configs(config).items():
        prefix = "" if name == MAIN else f"variants.{name}."

        def require(condition, flag, mend, variant=variant, prefix=prefix):
            if not condition:
                raise ConfigError(prefix + flag, config_lib.field(variant, flag), mend)

        sweep = variant.sweep
        for flag in ("max_lags", "learning_rates", "seeds", "horizons"):
            require(len(sweep[flag]) > 0, f"sweep.{flag}", "give one value or more")
            require(len(set(sweep[flag])) == len(sweep[flag]), f"sweep.{flag}", "give each value once")
        require(max(sweep.max_lags) < variant.steps, "sweep.max_lags", f"give lags below steps={variant.steps}")
        inside = all(1 <= horizon <= variant.steps for horizon in sweep.horizons)
        require(inside, "sweep.horizons", f"give learner steps from 1 to steps={variant.steps}")
        for flag in ("num_warm_starts", "chunk_size"):
            require(sweep[flag] >= 1, f"sweep.{flag}", "give a number >= 1")
        require(sweep.num_workers >= 0, "sweep.num_workers", "give a number >= 0")
        require(variant.lag.schedule in SCHEDULES, "lag.schedule", f"choose one of {', '.join(SCHEDULES)}")
        require(variant.task.get("name") not in TEXT_TASKS, "task.name", "a sweep compiles rewards: give arithmetic")
        require(variant.policy.checkpoint is None, "policy.checkpoint", "a sweep makes its policies: leave it unset")
        require(variant.microbatch_prompts == 0, "microbatch_prompts", "a sweep takes each batch at once: give 0")
        require(variant.updates_per_batch == 1, "updates_per_batch", "a sweep takes one update per batch: give 1")
        require(
            variant.eval_every >= 1 and variant.steps % variant.eval_every == 0,
            "eval_every",
            f"give a divisor of steps={variant.steps}",
        )
        require(sweep.freeze_after >= variant.eval_every, "sweep.freeze_after", "give a number >= eval_every")
        for cell in cells(variant).values():
            validation.validate(cell, jax.device_count())
