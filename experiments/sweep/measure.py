"""Trains the cells of a sweep that have no record yet, all of them or a share."""

import dataclasses
import os
import pathlib
import re
import time

from ml_collections import ConfigDict

from experiments.sweep import grid
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import run_cells


@dataclasses.dataclass(frozen=True)
class Share:
    """One of several parts of a sweep's cells."""

    index: int  # from 1
    count: int

    @classmethod
    def parse(cls, value: str) -> "Share":
        """Reads a share from 'I/N'. Raises FlagError."""
        match = re.fullmatch(r"(\d+)/(\d+)", value)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise FlagError("share", value, "give I/N, with I from 1 to N")
        return cls(int(match[1]), int(match[2]))

    def of(self, cells: list[str]) -> list[str]:
        """Returns every N-th cell, so that long and short trainings are dealt out alike."""
        return cells[self.index - 1 :: self.count]


def run_map(
    name: str, config: ConfigDict, workdir: pathlib.Path, share: Share | None = None
) -> list[dict]:
    """Runs the missing cells of one map, or of a share of it.

    Args:
      name: the map's name; its records are in the file `grid.cells_file(name)`.
      config: the map's config.
      workdir: the folder of the records.
      share: if it is given, its cells alone are run, into a file of its own.

    Returns:
      The records of the map, or of the share's file, in the grid's order.
    """
    cells = grid.cells(config)
    path = workdir / grid.cells_file(name)
    finished: set[str] = set()
    if share is not None:
        finished = set(CellFile(path).records)
        cells = {cell: cells[cell] for cell in share.of(list(cells))}
        path = path.with_suffix(f".share-{share.index}-of-{share.count}.jsonl")
    file = CellFile(path)
    if share is None:
        for part in sorted(workdir.glob(f"{path.stem}.share-*.jsonl")):
            file.merge(part)
    finished |= set(file.records)
    missing = {cell: settings for cell, settings in cells.items() if cell not in finished}
    if missing:
        start, steps = time.perf_counter(), 0
        records = run_cells(
            missing,
            max_lag=max(config.sweep.max_lags),
            freeze_after=config.sweep.freeze_after,
            chunk_size=config.sweep.chunk_size,
            num_workers=config.sweep.num_workers or len(os.sched_getaffinity(0)),
        )
        with Progress(f"cells of {name}", len(missing)) as progress:
            for record in records:
                file.append(record)
                steps += record["steps_run"]
                progress.advance(f"{steps / (time.perf_counter() - start):.0f} learner steps/s")
        seconds = time.perf_counter() - start
        print(f"{name}: {len(missing)} cells, {steps} learner steps in {seconds:.0f} s", flush=True)
    recorded = [cell for cell in cells if cell in file.records]
    if recorded:
        file.sort(recorded)
    return [file.records[cell] for cell in recorded]
