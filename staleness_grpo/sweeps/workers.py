"""Trains the cells of a sweep in worker processes, one for each core, or on an accelerator."""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from staleness_grpo.policy.configured import make_policy
from staleness_grpo.runtime import compile_cache, compiler_flags
from staleness_grpo.runtime.cores import pin_to, usable_cores
from staleness_grpo.runtime.records import plain
from staleness_grpo.sweeps.program import CellInputs, cell_inputs, make_cell_program
from staleness_grpo.sweeps.records import cell_record
from staleness_grpo.tasks import make_task
from staleness_grpo.training.warm_start import warm_start

PARENT_CHECK_SECONDS = 0.5


def run_cells(
    cells: dict[str, ConfigDict],
    *,
    max_lag: int,
    freeze_after: int,
    chunk_size: int,
    num_workers: int,
) -> Iterator[dict]:
    """Trains the cells and yields the record of each. The order is that in which chunks finish.

    Each record is a `records.cell_record` plus a `time_cell` field. `time_cell` is the time of the
    cell's chunk in seconds, compilation included, divided by the number of cells in the chunk.

    Args:
      cells: the config of each cell, by name.
      max_lag: the largest lag of the whole sweep, including cells that are not run in this call.
        It sets array shapes of the program.
      freeze_after: see `program.make_cell_program`.
      chunk_size: number of cells that a worker trains together, vectorized. Cells of one chunk
        differ only in seed, learning rate and lag.
      num_workers: number of processes. Each runs on its own core, if there are enough. An
        accelerator belongs to one process, so there this process trains the cells.

    Raises:
      concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    if jax.default_backend() != "cpu":
        for chunk in _chunks(cells, chunk_size):
            yield from _run_chunk(chunk, max_lag, freeze_after, chunk_size)
        return
    with worker_pool(num_workers) as pool:
        make_warm_starts(pool, cells)
        futures = [
            pool.submit(_run_chunk, chunk, max_lag, freeze_after, chunk_size)
            for chunk in _chunks(cells, chunk_size)
        ]
        for future in concurrent.futures.as_completed(futures):
            yield from future.result()


class Workers(concurrent.futures.ProcessPoolExecutor):
    """A pool whose errors all reach this process.

    Some errors of JAX cannot be unpickled. A plain pool would break at one, and not say which.
    """

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future:
        """Lets a worker call a function; an error that cannot be sent becomes a RuntimeError."""
        return super().submit(_call, fn, *args, **kwargs)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"in a worker:\n{text}") from None
        raise


@contextlib.contextmanager
def worker_pool(num_workers: int) -> Iterator[Workers]:
    """Gives a pool of processes that use one thread each, and end when this process ends.

    Args:
      num_workers: number of processes. Each is pinned to its own core, if there are enough.
    """
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in itertools.islice(itertools.cycle(usable_cores()), num_workers):
        cores.put(core)
    # JAX adds this attribute at import.
    folder = str(jax.config.jax_compilation_cache_dir or "")  # type: ignore[attr-defined]
    with Workers(
        num_workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(cores, os.getpid(), folder),
    ) as pool:
        yield pool


def make_warm_starts(pool: Workers, cells: dict[str, ConfigDict]) -> None:
    """Computes every warm start of the cells once, and stores it in the cache."""
    futures = [
        pool.submit(_make_warm_start, config.to_dict()) for config in _with_warm_starts(cells)
    ]
    for future in futures:
        future.result()


def _with_warm_starts(cells: dict[str, ConfigDict]) -> list[ConfigDict]:
    """Returns configs in which every warm start of the cells occurs once."""
    configs = {}
    for config in cells.values():
        if config.warm_start.steps:
            sections = [config.task, config.policy, config.warm_start]
            configs[json.dumps([section.to_dict() for section in sections])] = config
    return list(configs.values())


def _chunks(cells: dict[str, ConfigDict], chunk_size: int) -> list[list[tuple[str, dict]]]:
    """Splits the cells into chunks. The cells of a chunk share a compiled program."""
    by_program: dict[str, list] = {}
    for name, config in cells.items():
        by_program.setdefault(_program_fields(config.to_dict()), []).append(
            (name, config.to_dict())
        )
    return [
        group[i : i + chunk_size]
        for group in by_program.values()
        for i in range(0, len(group), chunk_size)
    ]


def _program_fields(config: dict) -> str:
    """Returns, as JSON, the config without the fields that a program takes as data."""
    fields = json.loads(json.dumps(plain(config)))
    for section, name in (
        (fields, "seed"),
        (fields, "lag"),
        (fields["warm_start"], "seed"),
        (fields["optimizer"], "learning_rate"),
    ):
        section.pop(name)
    return json.dumps(fields, sort_keys=True)


def _start_worker(cores: Any, parent: int, cache_folder: str) -> None:
    """Pins the worker to a core, and ends the worker when its parent process has ended.

    So no worker keeps running after the sweep was killed. On one core a worker uses one thread. Two
    cells with one thread each, side by side, finish sooner than two cells with two threads each,
    one after the other.

    Args:
      cores: a queue with one core for each worker.
      parent: the process id of the sweep.
      cache_folder: the folder for compiled programs; empty if they are not kept.
    """
    # Ctrl-C reaches the worker too. The default handler ends the worker without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    pin_to(cores.get())
    compiler_flags.prefer_long_runs()
    if cache_folder:
        jax.config.update("jax_compilation_cache_dir", cache_folder)
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", compile_cache.MIN_COMPILE_SECONDS
        )

    def exit_with_parent():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _make_warm_start(fields: dict) -> None:
    """Computes a warm start and stores it in the cache, from which the cells read it."""
    config = ConfigDict(fields)
    task = make_task(config.task)
    warm_start(make_policy(config.policy, task.vocab_size), task, config)


@functools.cache
def _compiled_program(
    program_fields: str, max_lag: int, freeze_after: int, chunk_size: int
) -> Callable[[CellInputs], dict[str, jax.Array]]:
    """Returns the program for these fields. Each worker compiles a program once."""
    fields = json.loads(program_fields)
    fields["optimizer"]["learning_rate"] = 0.0  # required, but never read
    program = make_cell_program(ConfigDict(fields), max_lag, freeze_after)
    return jax.jit(program if chunk_size == 1 else jax.vmap(program))


def _run_chunk(
    chunk: list[tuple[str, dict]], max_lag: int, freeze_after: int, chunk_size: int
) -> list[dict]:
    """Trains the cells of one chunk and returns their records.

    The program is compiled for `chunk_size` cells. A shorter chunk is filled up with copies of its
    first cell, whose results are dropped.
    """
    start = time.perf_counter()
    configs = [ConfigDict(config) for _, config in chunk]
    inputs = [cell_inputs(config) for config in configs]
    program = _compiled_program(_program_fields(chunk[0][1]), max_lag, freeze_after, chunk_size)
    if chunk_size == 1:
        traces = [jax.device_get(program(inputs[0]))]
    else:
        inputs += inputs[:1] * (chunk_size - len(inputs))
        stacked = jax.device_get(
            program(jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *inputs))
        )
        traces = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(chunk))]
    seconds = (time.perf_counter() - start) / len(chunk)
    return [
        cell_record(name, config, trace) | {"time_cell": seconds}
        for (name, _), config, trace in zip(chunk, configs, traces, strict=False)
    ]
