"""Runs cells as trainings of the loop, each in a workdir of its own, and makes their records.

A cell that was killed goes on from its newest checkpoint when the sweep is called again. When its
record is written, its checkpoints are deleted; its other files stay.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from experiments.common.workdir import SUMMARY, exclusive
from experiments.paired_bias.measure import paired_record
from experiments.train.measure import METRICS, measure
from staleness_grpo.runtime.preemption import EXIT_CODE, Preemption
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.sweeps.records import cell_record
from staleness_grpo.sweeps.trainings import freeze_rule, traces_of
from staleness_grpo.sweeps.workers import make_warm_starts, worker_pool
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import lowest_reward

LOG = "log.txt"  # what a training in a worker prints, in its own folder
POLL_SECONDS = 0.5


def folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a map's trainings, below the sweep's workdir."""
    return workdir / "trainings" / name


def run_trainings(
    cells: dict[str, ConfigDict], parent: pathlib.Path, *, freeze_after: int, num_workers: int
) -> Iterator[dict]:
    """Trains the cells and yields the record of each, in the order in which they finish.

    With one CPU device, each worker process trains one cell at a time, on its own core. In all
    other cases the cells are trained one after the other, on the mesh of their config. Then all
    processes of a run on several hosts call this function.

    Args:
      cells: the config of each training, by the cell's name.
      parent: the folder that gets a workdir of `experiments.train` for each cell.
      freeze_after: learner steps with a low reward after which a training ends.
      num_workers: number of worker processes.

    Raises:
      SystemExit: a signal asked to stop, and the trainings were saved. The code is EXIT_CODE.
    """
    parent.mkdir(parents=True, exist_ok=True)
    # A process compiles once for all cells of one learning rate, if they follow each other.
    cells = dict(sorted(cells.items(), key=lambda item: item[1].optimizer.learning_rate))
    run = functools.partial(train_cell, freeze_after=freeze_after)
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        for name, config in cells.items():
            record = run(name, config.to_dict(), parent / name)
            if jax.process_index() == 0:
                yield record
        return
    with Preemption() as preemption, worker_pool(num_workers) as pool:
        make_warm_starts(pool, cells)
        waiting = {
            pool.submit(_train_in_worker, run, name, config.to_dict(), parent / name)
            for name, config in cells.items()
        }
        while waiting:
            finished, waiting = concurrent.futures.wait(
                waiting, POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
            )
            for future in finished:
                yield future.result()
            if preemption.requested_before_the_first_step():
                _stop()


def train_cell(name: str, fields: dict, workdir: pathlib.Path, freeze_after: int) -> dict:
    """Trains a cell in its workdir, or goes on with it, and returns its record.

    Returns:
      The `cell_record` of the training, with two fields more:

      - `time_cell`: the sum of its steps' times, in seconds.
      - `paired`: the comparison of stale and fresh gradients, if `metrics.paired_every` asks for
        one; see `experiments.paired_bias.measure.paired_record`.

    Raises:
      SystemExit: a signal asked the training to stop, and it was saved. The code is EXIT_CODE.
    """
    config = ConfigDict(fields)
    workdir.mkdir(parents=True, exist_ok=True)
    floor = lowest_reward(make_task(config.task, config.policy.checkpoint))
    writes_records = jax.process_index() == 0
    with exclusive(workdir) if writes_records else contextlib.nullcontext():
        if not (workdir / SUMMARY).exists():
            measure(config, workdir, ends_early=freeze_rule(config, freeze_after, floor))
        if not writes_records:
            return {}
        num_steps = read_json(workdir / SUMMARY)["learner_steps"]
        records = read_jsonl(workdir / METRICS)[:num_steps]
        record = cell_record(name, config, traces_of(records, config))
        record["time_cell"] = sum(step["time_step"] for step in records)
        if config.metrics.paired_every:
            record["paired"] = paired_record(config, records)
    return record


def forget_checkpoints(workdir: pathlib.Path) -> None:
    """Deletes the checkpoints of a finished training, whose record is on disk."""
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


def _train_in_worker(
    run: functools.partial, name: str, fields: dict, workdir: pathlib.Path
) -> dict:
    """Trains a cell in a worker process, with its messages in a file of its workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOG).open("a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return run(name, fields, workdir)


def _stop() -> None:
    """Asks the workers to save their trainings, waits for their ends, and exits with EXIT_CODE.

    A worker in a training saves it, and may then begin the next one, which the pool has given it
    ahead. A worker that ends between two trainings may leave the pool's queue locked, so that the
    others wait for ever. So all workers are asked again until none is left.
    """
    while workers := multiprocessing.active_children():
        for worker in workers:
            worker.terminate()
        time.sleep(POLL_SECONDS)
    print("stopped and saved; run the same command to go on", file=sys.stderr)
    sys.exit(EXIT_CODE)
