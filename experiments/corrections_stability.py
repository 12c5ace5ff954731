"""The (S, eta) cells of each correction, trained by the sweep engine: eta_max by S, final reward."""

import os
import pathlib

from ml_collections import ConfigDict

from experiments import corrections_exact, sweep_grid

BASELINE = "grpo_clip"


def methods(config: ConfigDict) -> dict[str, ConfigDict]:
    """The sweep's config of every trained correction, and of every update rule beside the baseline's loss."""
    chosen = [(name, name, None) for name in config.trained]
    chosen += [(rule, BASELINE, rule) for rule in config.trained_update_rules]
    found = {}
    for label, name, rule in chosen:
        stability = config.stability.copy_and_resolve_references()
        stability.correction.name, stability.correction.update_rule = name, rule
        surrogate = corrections_exact.surrogate_of(name, stability.surrogate.to_dict())
        stability.surrogate.length_normalization = surrogate.length_normalization
        stability.surrogate.normalize_std = surrogate.normalize_std
        found[label] = stability
    return found


def run(config: ConfigDict, path: pathlib.Path) -> list[dict]:
    """Trains the cells without a record in the file `path`, one method after the other; returns all records.

    Each is that of `sweep_runner.cell_record` with the `method` it belongs to.
    """
    from staleness_grpo import metrics, sweep_runner

    file = sweep_runner.CellFile(path)
    sweep = config.stability.sweep
    order = []
    for method, stability in methods(config).items():
        cells = {f"{method}-{name}": cell for name, cell in sweep_grid.cells(stability).items()}
        order += cells
        missing = {name: cell for name, cell in cells.items() if name not in file.records}
        if not missing:
            continue
        records = sweep_runner.run_cells(
            missing,
            max_lag=max(sweep.max_lags),
            freeze_after=sweep.freeze_after,
            chunk_size=sweep.chunk_size,
            num_workers=sweep.num_workers or len(os.sched_getaffinity(0)),
        )
        with metrics.Progress(method, len(missing)) as progress:
            for record in records:
                file.append(record | {"method": method})
                progress.advance()
    file.sort(order)
    return [file.records[name] for name in order]
