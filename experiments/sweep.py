"""The S x eta map: cells.jsonl, one line for each training, summary.json and the figures of the scaling laws.

    python -m experiments.sweep --workdir=DIR [--config=experiments/configs/scaling_laws_full.py]

A second call with the same workdir runs the cells that are missing, and draws the figures again. With `--share=I/N`
only the I-th of N shares of the cells is run, into files of its own: N such calls, at the same time and on any machines
that see the folder, and then one without it, which gathers them, runs what is missing and draws.
"""

import dataclasses
import os
import pathlib
import re
import time

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, sweep_grid
from staleness_grpo.config import FlagError


@dataclasses.dataclass(frozen=True)
class Share:
    """One of several parts of a sweep's cells."""

    index: int  # from 1
    count: int

    @classmethod
    def parse(cls, value: str) -> "Share":
        """From 'I/N'. Raises FlagError."""
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise FlagError("share", value, "give I/N, with I from 1 to N")
        return cls(int(found[1]), int(found[2]))

    def of(self, cells: list) -> list:
        """Every N-th, so that long and short trainings are dealt out alike."""
        return cells[self.index - 1 :: self.count]


def main(config: ConfigDict, workdir: pathlib.Path, share: Share | None = None) -> None:
    """Trains every cell that has no record yet, then analyses and draws all of them; a share is trained alone."""
    from experiments import sweep_summary
    from experiments.figures import scaling
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    variants = sweep_grid.variant_configs(config)
    records = {name: run_map(name, variant, workdir, share) for name, variant in variants.items()}
    if share is not None:
        print(f"share {share.index} of {share.count} done; a call without --share gathers them")
        return
    summary = sweep_summary.summarize(records, config)
    metrics.write_json(workdir / "summary.json", summary)
    for path in scaling.draw_all(workdir):
        print(path)
    print(workdir / "summary.json")


def run_map(name: str, config: ConfigDict, workdir: pathlib.Path, share: Share | None = None) -> list[dict]:
    """Runs the missing cells of one map, or of a share of it; returns their records in the grid's order."""
    from staleness_grpo import metrics, sweep_runner

    cells = sweep_grid.cells(config)
    path = workdir / cells_file(name)
    finished = set()
    if share is not None:
        finished = set(sweep_runner.CellFile(path).records)
        cells = {cell: cells[cell] for cell in share.of(list(cells))}
        path = path.with_suffix(f".share-{share.index}-of-{share.count}.jsonl")
    file = sweep_runner.CellFile(path)
    if share is None:
        for part in sorted(workdir.glob(f"{path.stem}.share-*.jsonl")):
            file.merge(part)
    finished |= set(file.records)
    missing = {cell: settings for cell, settings in cells.items() if cell not in finished}
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
    there = [cell for cell in cells if cell in file.records]
    if there:
        file.sort(there)
    return [file.records[cell] for cell in there]


def cells_file(name: str) -> str:
    """The records of a map: cells.jsonl for the main one."""
    return "cells.jsonl" if name == sweep_grid.MAIN else f"cells-{name}.jsonl"


def chosen_share(value: str | None) -> Share | None:
    """The share that the flag asks for. Raises FlagError."""
    return None if value is None else Share.parse(value)


if __name__ == "__main__":
    flag = flags.DEFINE_string("share", None, "I/N: run the I-th of N shares of the cells alone.")

    def _validate(config: ConfigDict) -> None:
        chosen_share(flag.value)
        sweep_grid.validate(config)

    cli.run(
        lambda config, workdir: main(config, workdir, chosen_share(flag.value)),
        default_config="experiments/configs/scaling_laws.py",
        validate=_validate,
        optional=("variants",),
    )
