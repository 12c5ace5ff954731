"""Trains the (S, eta) cells of each correction, from which `analysis` takes its stability.

The trainings and their records are those of `experiments.sweep`.
"""

import pathlib
from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.corrections.surrogates import surrogate_of
from experiments.sweep import grid
from experiments.sweep.engine import COMPILED
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import run_cells

BASELINE = "grpo_clip"  # the correction that all others are compared with


class Method(NamedTuple):
    """A trained method: a correction of the loss, perhaps with an update rule."""

    name: str
    correction: str
    update_rule: str | None


def trained_methods(config: ConfigDict) -> list[Method]:
    """Returns the methods to train, in order.

    They are the corrections in `config.trained`, then the update rules in
    `config.trained_update_rules`. An update rule is trained with the baseline's loss.
    """
    corrections = [Method(name, name, None) for name in config.trained]
    return corrections + [Method(rule, BASELINE, rule) for rule in config.trained_update_rules]


def sweep_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the sweep's config of every trained method, by the method's name."""
    configs = {}
    for method in trained_methods(config):
        sweep_config = config.stability.copy_and_resolve_references()
        sweep_config.correction.name = method.correction
        sweep_config.correction.update_rule = method.update_rule
        sweep_config.sweep.engine = COMPILED
        surrogate = surrogate_of(method.correction, sweep_config.surrogate.to_dict())
        sweep_config.surrogate.length_normalization = surrogate.length_normalization
        sweep_config.surrogate.normalize_std = surrogate.normalize_std
        configs[method.name] = sweep_config
    return configs


def train_cells(config: ConfigDict, path: pathlib.Path) -> list[dict]:
    """Trains the cells that have no record in the file `path`, one method after the other.

    Returns:
      The records of all cells, sorted by method and then as in the sweep's grid. Each is a
      `sweeps.records.cell_record` plus a `method` field.
    """
    file = CellFile(path)
    sweep = config.stability.sweep
    names_in_order: list[str] = []
    for method, sweep_config in sweep_configs(config).items():
        cells = {f"{method}-{name}": cell for name, cell in grid.cells(sweep_config).items()}
        names_in_order += cells
        missing = {name: cell for name, cell in cells.items() if name not in file.records}
        if not missing:
            continue
        records = run_cells(
            missing,
            max_lag=max(sweep.max_lags),
            freeze_after=sweep.freeze_after,
            chunk_size=sweep.chunk_size,
            num_workers=sweep.num_workers or len(usable_cores()),
        )
        with Progress(method, len(missing)) as progress:
            for record in records:
                file.append(record | {"method": method})
                progress.advance()
    file.sort(names_in_order)
    return [file.records[name] for name in names_in_order]
