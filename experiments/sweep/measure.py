"""Trains the cells of a sweep that have no record yet: all of them, or one share."""

import dataclasses
import pathlib
import re
import sys
import time

import jax
from ml_collections import ConfigDict

from experiments.sweep import grid, trainings
from experiments.sweep.engine import COMPILED, engine, why_loop
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.sweeps.records import CellFile
from staleness_grpo.sweeps.workers import run_cells

LINE_SECONDS = 60.0  # between two lines about the time that is left


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
        _run(name, config, missing, file, workdir)
    recorded = [cell for cell in cells if cell in file.records]
    if recorded:
        file.sort(recorded)
    return [file.records[cell] for cell in recorded]


def _run(
    name: str,
    config: ConfigDict,
    missing: dict[str, ConfigDict],
    file: CellFile,
    workdir: pathlib.Path,
) -> None:
    """Runs cells of a map with the map's engine, and appends their records to a file."""
    num_workers = config.sweep.num_workers or len(usable_cores())
    is_compiled = engine(config) == COMPILED
    folder = trainings.folder(workdir, name)
    if is_compiled and jax.process_count() > 1:
        hint = "compiled cells do not span processes: give --share=I/N, or one process"
        raise FlagError("num_processes", jax.process_count(), hint)
    if is_compiled:
        records = run_cells(
            missing,
            max_lag=max(config.sweep.max_lags),
            freeze_after=config.sweep.freeze_after,
            chunk_size=config.sweep.chunk_size,
            num_workers=num_workers,
        )
    else:
        reason = why_loop(config) or f"sweep.engine={config.sweep.engine}"
        print(f"{name}: each cell is a training of the loop ({reason})", flush=True)
        records = trainings.run_trainings(
            missing, folder, freeze_after=config.sweep.freeze_after, num_workers=num_workers
        )
    clock = Clock(len(missing))
    with Progress(f"cells of {name}", len(missing)) as progress:
        for record in records:
            file.append(record)
            if not is_compiled:
                trainings.forget_checkpoints(folder / record["cell"])
            progress.advance(clock.advance(record["steps_run"]))
    seconds, amount = clock.seconds, f"{len(missing)} cells, {clock.num_steps} learner steps"
    print(f"{name}: {amount} in {seconds:.0f} s", flush=True)


class Clock:
    """Measures the speed of a sweep, and says from time to time how long it still takes."""

    def __init__(self, num_cells: int):
        self._num_cells, self._num_done = num_cells, 0
        self._start = self._last_line = time.perf_counter()
        # The first cell of each core compiles programs, which says nothing about the others.
        self._num_first, self._first = len(usable_cores()), self._start
        self.num_steps = 0  # learner steps of the cells that are done

    @property
    def seconds(self) -> float:
        """Returns the time since the start."""
        return time.perf_counter() - self._start

    def advance(self, num_steps: int) -> str:
        """Counts one more cell as done; returns the speed. In a log it prints a line in a minute.

        A terminal has the progress bar, which shows the time that is left.
        """
        self._num_done += 1
        self.num_steps += num_steps
        now, later = time.perf_counter(), self._num_done - self._num_first
        if later == 0:
            self._first = now
        # A round is over: cells that are done at nearly the same time would promise too much.
        is_known = later >= self._num_first
        if is_known and not sys.stderr.isatty() and now - self._last_line > LINE_SECONDS:
            self._last_line = now
            left = (now - self._first) / later * (self._num_cells - self._num_done)
            done = f"{self._num_done} of {self._num_cells} cells are done"
            print(f"{done}; about {duration(left)} left", file=sys.stderr, flush=True)
        return f"{self.num_steps / self.seconds:.0f} learner steps/s"


def duration(seconds: float) -> str:
    """Returns a time in words: seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def share_files(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of shares beside a map's file of records, without half-written ones."""
    name = re.compile(re.escape(path.stem) + r"\.share-\d+-of-\d+\.jsonl")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))
