"""Refuses configs of the pipeline experiment that cannot be run.

The constructors of cluster, engines, lengths and rules check the fields of their own sections.
"""

import math
import pathlib

from ml_collections import ConfigDict

from experiments.common.workdir import SUMMARY
from experiments.pipeline.grid import cells, make_cell
from staleness_grpo.errors import require, require_at_least, require_local


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first field whose value cannot be used."""
    check_grid(config)
    require_at_least(config, {"warm_up": 0})
    hint = f"give more than warm_up={config.warm_up}"
    require(config.steps > config.warm_up, "steps", hint, config.steps)
    if config.map is not None:
        check_map(config.map)
        finite = math.isfinite(config.target_reward)
        require(finite, "target_reward", "give a finite number", config.target_reward)


def check_grid(config: ConfigDict) -> None:
    """Raises FieldError unless every simulation of the config can be made."""
    for name in ("seeds", "buffers", "max_lags", "limits"):
        values = list(config[name])
        require(len(values) > 0, name, "give at least one value", config[name])
        require(len(set(values)) == len(values), name, "give distinct values", config[name])
    for name in ("seeds", "max_lags"):
        smallest = min(config[name])
        require(smallest >= 0, name, "give numbers >= 0", smallest)
    for cell in cells(config):
        make_cell(config, cell)


def check_map(folder: str) -> None:
    """Raises FieldError unless a folder is a finished workdir of `experiments.sweep`."""
    require_local(folder, "map")
    for name in ("cells.jsonl", SUMMARY):
        there = (pathlib.Path(folder) / name).is_file()
        hint = f"there is no {name}: give a finished workdir of experiments.sweep"
        require(there, "map", hint, folder)
