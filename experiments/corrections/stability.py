"""Trains the (S, eta) cells of each correction as a sweep does: eta_max by S, final reward."""

import os
import pathlib

from ml_collections import ConfigDict

from experiments.corrections.exact import surrogate_of
from experiments.sweep import grid
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import run_cells

BASELINE = "grpo_clip"  # the correction that all others are set against


def methods(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the sweep's config of every trained method, by name.

    The methods are the corrections of `config.trained`, and the update rules of
    `config.trained_update_rules`, each beside the baseline's loss.
    """
    chosen = [(name, name, None) for name in config.trained]
    chosen += [(rule, BASELINE, rule) for rule in config.trained_update_rules]
    configs = {}
    for method, name, rule in chosen:
        stability = config.stability.copy_and_resolve_references()
        stability.correction.name, stability.correction.update_rule = name, rule
        surrogate = surrogate_of(name, stability.surrogate.to_dict())
        stability.surrogate.length_normalization = surrogate.length_normalization
        stability.surrogate.normalize_std = surrogate.normalize_std
        configs[method] = stability
    return configs


def run(config: ConfigDict, path: pathlib.Path) -> list[dict]:
    """Trains the cells without a record in the file `path`, one method after the other.

    Returns:
      All records. Each is that of `sweeps.records.cell_record` with the `method` it belongs to.
    """
    file = CellFile(path)
    sweep = config.stability.sweep
    order: list[str] = []
    for method, stability in methods(config).items():
        cells = {f"{method}-{name}": cell for name, cell in grid.cells(stability).items()}
        order += cells
        missing = {name: cell for name, cell in cells.items() if name not in file.records}
        if not missing:
            continue
        records = run_cells(
            missing,
            max_lag=max(sweep.max_lags),
            freeze_after=sweep.freeze_after,
            chunk_size=sweep.chunk_size,
            num_workers=sweep.num_workers or len(os.sched_getaffinity(0)),
        )
        with Progress(method, len(missing)) as progress:
            for record in records:
                file.append(record | {"method": method})
                progress.advance()
    file.sort(order)
    return [file.records[name] for name in order]
