"""Trains the cells of a sweep that have no record yet: all of them, or one share."""

import dataclasses
import pathlib
import re
import time

from ml_collections import ConfigDict

from experiments.sweep import grid
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import run_cells


@dataclasses.dataclass(frozen=True)
class Share:
    """Chooses one of several equal parts of a sweep's cells."""

    index: int  # number of this part, from 1 to count
    count: int  # number of parts

    @classmethod
    def parse(cls, value: str) -> "Share":
        """Returns the share that a text of the form 'I/N' describes. Raises FlagError."""
        match = re.fullmatch(r"(\d+)/(\d+)", value)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise FlagError("share", value, "give I/N, with I from 1 to N")
        return cls(int(match[1]), int(match[2]))

    def of(self, cells: list[str]) -> list[str]:
        """Returns the cells of this share.

        A share has every N-th cell, so every share gets long and short trainings.
        """
        return cells[self.index - 1 :: self.count]


def run_map(
    name: str, config: ConfigDict, workdir: pathlib.Path, share: Share | None = None
) -> list[dict]:
    """Runs the cells of one map that have no record yet, or only those of one share.

    A share skips the cells that the main file or its own file has. Files of other shares may still
    be growing, perhaps on other machines, so they are read only when the whole map is gathered.

    Args:
      name: the map's name. The file of its records is `grid.cells_file(name)`.
      config: the map's config.
      workdir: the folder of the records.
      share: if given, only the cells of this share are run. Their records go to a separate file.

    Returns:
      The records of the map, or those in the share's file, in the order of the grid.
    """
    cells = grid.cells(config)
    path = workdir / grid.cells_file(name)
    finished: set[str] = set()  # names of cells that are not run again
    if share is not None:
        finished = set(CellFile(path).records)
        cells = {cell: cells[cell] for cell in share.of(list(cells))}
        path = path.with_suffix(f".share-{share.index}-of-{share.count}.jsonl")
    file = CellFile(path)
    if share is None:
        for share_path in share_files(path):
            file.merge(share_path)
    finished |= set(file.records)
    missing = {cell: settings for cell, settings in cells.items() if cell not in finished}
    if missing:
        start, num_steps = time.perf_counter(), 0
        records = run_cells(
            missing,
            max_lag=max(config.sweep.max_lags),
            freeze_after=config.sweep.freeze_after,
            chunk_size=config.sweep.chunk_size,
            num_workers=config.sweep.num_workers or len(usable_cores()),
        )
        with Progress(f"cells of {name}", len(missing)) as progress:
            for record in records:
                file.append(record)
                num_steps += record["steps_run"]
                steps_per_second = num_steps / (time.perf_counter() - start)
                progress.advance(f"{steps_per_second:.0f} learner steps/s")
        seconds = time.perf_counter() - start
        amount = f"{len(missing)} cells, {num_steps} learner steps"
        print(f"{name}: {amount} in {seconds:.0f} s", flush=True)
    recorded = [cell for cell in cells if cell in file.records]
    if recorded:
        file.sort(recorded)
    return [file.records[cell] for cell in recorded]


def share_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of shares beside a map's file of records, without half-written ones."""
    name = re.compile(re.escape(path.stem) + r"\.share-\d+-of-\d+\.jsonl")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))
