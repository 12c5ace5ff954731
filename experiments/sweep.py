"""The S x eta map: cells.jsonl, one line for each training, summary.json and the figures of the scaling laws.

    python -m experiments.sweep --workdir=DIR [--config=experiments/configs/scaling_laws_full.py]

A second call with the same workdir runs the cells that are missing, and draws the figures again.
"""

import os
import pathlib
import time

from ml_collections import ConfigDict

from experiments import cli, sweep_grid


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains every cell that has no record yet, then analyses and draws all of them."""
    from experiments import sweep_summary
    from experiments.figures import scaling
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    records = {name: run_map(name, variant, workdir) for name, variant in sweep_grid.variant_configs(config).items()}
    summary = sweep_summary.summarize(records, config)
    metrics.write_json(workdir / "summary.json", summary)
    for path in scaling.draw_all(workdir):
        print(path)
    print(workdir / "summary.json")


def run_map(name: str, config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Runs the missing cells of one map; returns all its records in the grid's order."""
    from staleness_grpo import metrics, sweep_runner

    file = sweep_runner.CellFile(workdir / cells_file(name))
    cells = sweep_grid.cells(config)
    missing = {cell: settings for cell, settings in cells.items() if cell not in file.records}
    if missing:
        start, steps = time.perf_counter(), 0
        records = sweep_runner.run_cells(
            missing,
            max_lag=max(config.sweep.max_lags),
            freeze_after=config.sweep.freeze_after,
            chunk_size=config.sweep.chunk_size,
            num_workers=config.sweep.num_workers or len(os.sched_getaffinity(0)),
        )
        with metrics.Progress(f"cells of {name}", len(missing)) as progress:
            for record in records:
                file.append(record)
                steps += record["steps_run"]
                progress.advance(f"{steps / (time.perf_counter() - start):.0f} learner steps/s")
        seconds = time.perf_counter() - start
        print(f"{name}: {len(missing)} cells, {steps} learner steps in {seconds:.0f} s", flush=True)
        file.sort(list(cells))
    return [file.records[cell] for cell in cells]


def cells_file(name: str) -> str:
    """The records of a map: cells.jsonl for the main one."""
    return "cells.jsonl" if name == sweep_grid.MAIN else f"cells-{name}.jsonl"


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/scaling_laws.py", validate=sweep_grid.validate)
