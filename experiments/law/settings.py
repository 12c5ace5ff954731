"""Makes the maps of the study, and checks its config."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.common.workdir import SUMMARY
from experiments.sweep import grid
from staleness_grpo.errors import require, require_local
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.scaling import collapse_law
from staleness_grpo.training.learner import momentum_decay

REFERENCE = "reference"
STORIES = "stories260k"
INTERVENTION_LAG = 16  # S at which interventions are compared
AGES = LARGEST, MEAN = "largest", "mean"  # what may take the place of S under other schedules
ROLES = ("calibration", "heldout", "interventions")  # fields of `law` that name settings


@dataclasses.dataclass(frozen=True)
class Setting:
    """Holds the records of one map, and what the predictions know of it."""

    records: list[dict]
    b1: float  # decay of Adam's first moment; 0 for an optimizer without momentum
    optimizer: str
    schedule: str = "constant"  # of the lag; its mean age takes the place of S

    def age(self, max_lag: Any) -> Any:
        """Returns what takes the place of S in the law, for a number or an array."""
        return collapse_law.mean_age(self.schedule, max_lag)

    @property
    def runs(self) -> collapse_law.Runs:
        """Returns the runs of the map."""
        return collapse_law.runs(self.records, self.age)


def _check_maps(config: ConfigDict) -> None:
    """Raises FieldError if a map lacks the seeds, lags or schedule that its role needs."""
    law, maps = config.law, configs(config)
    roles = {name: "calibration" for name in law.calibration}
    roles |= {name: "heldout" for name in law.heldout}
    for name, role in roles.items():
        sweep, field = maps[name].sweep, f"law.{role}"
        hint = f"the map {name} has one seed: give it two or more"
        require(len(set(sweep.seeds)) > 1, field, hint, law[role])
        hint = f"the map {name} has no cells with S = 0: add 0 to its sweep.max_lags"
        require(role != "heldout" or 0 in sweep.max_lags, field, hint, law[role])
    compared = {grid.MAIN, *law.interventions} if law.interventions else set()
    for name in sorted(compared):
        hint = f"the map {name} has no cells with S = {INTERVENTION_LAG}: add them, or give none"
        there = INTERVENTION_LAG in maps[name].sweep.max_lags
        require(there, "law.interventions", hint, law.interventions)
    for name, setting in maps.items():
        known = law.age != MEAN or setting.lag.schedule in collapse_law.MEAN_AGES
        hint = f"the mean age of lag.schedule={setting.lag.schedule} in the map {name} is not known"
        require(known, "law.age", f"{hint}: give largest", law.age)


def configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each map. The first is the reference."""
    return grid.variant_configs(_sweep(config))


def _sweep(config: ConfigDict) -> ConfigDict:
    """Returns the config of `experiments.sweep` that the study's config contains."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for section in ("law", "stories"):
            del config[section]
    return config


def middle_rate(records: list[dict]) -> float:
    """Returns the geometric mean of the learning rates of a map's grid."""
    return float(np.exp(np.mean(np.log(sorted({r["learning_rate"] for r in records})))))


def read(config: ConfigDict, maps: dict[str, list[dict]]) -> dict[str, Setting]:
    """Returns all settings by name.

    Args:
      config: the config of the study.
      maps: the records of each map, by the names of `configs`.
    """
    settings = {}
    for name, setting in configs(config).items():
        optimizer = setting.optimizer
        b1 = momentum_decay(optimizer)
        key = REFERENCE if name == grid.MAIN else name
        schedule = setting.lag.schedule if config.law.age == MEAN else "constant"
        settings[key] = Setting(maps[name], b1, optimizer.name, schedule)
    if config.stories is not None:
        records = read_jsonl(pathlib.Path(config.stories) / grid.cells_file(grid.MAIN))
        settings[STORIES] = Setting(records, 0.9, records[0]["optimizer"])
    return settings


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first field whose value cannot be used."""
    law = config.law
    names = set(config.get("variants", {}))
    for role in ROLES:
        for name in law[role]:
            hint = f"give names of variants: {', '.join(sorted(names))}"
            require(name in names, f"law.{role}", hint, name)
    require(law.age in AGES, "law.age", f"choose one of {', '.join(AGES)}", law.age)
    require(len(law.calibration) > 0, "law.calibration", "give at least one name", law.calibration)
    require(law.probe_steps >= 1, "law.probe_steps", "give a number >= 1", law.probe_steps)
    require(len(law.probe_lags) > 0, "law.probe_lags", "give at least one lag", law.probe_lags)
    grid.validate(_sweep(config))
    _check_maps(config)
    if config.stories is not None:
        require_local(config.stories, "stories")
        for name in ("cells.jsonl", SUMMARY):
            there = (pathlib.Path(config.stories) / name).is_file()
            hint = f"there is no {name}: give a finished workdir of experiments.sweep"
            require(there, "stories", hint, config.stories)
