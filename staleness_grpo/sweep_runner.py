"""A sweep's cells over worker processes, one for each core, with a record on disk as each cell finishes."""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from staleness_grpo import compile_cache, sweep
from staleness_grpo.metrics import plain
from staleness_grpo.policy.supervised import warm_start
from staleness_grpo.scaling.collapse import detect_collapse

# One thread for each worker: two cores run two cells faster than they run one cell together.
WORKER_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false"
SIGNIFICANT_DIGITS = 6
PARENT_CHECK_SECONDS = 0.5


class CellFile:
    """cells.jsonl, appended to and flushed line by line; a line that a kill cut short is dropped on opening."""

    def __init__(self, path: pathlib.Path):
        self._path = pathlib.Path(path)
        self.records: dict[str, dict] = {}
        if self._path.exists():
            whole = self._path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            os.truncate(self._path, len(whole))
            self.records = {record["cell"]: record for record in map(json.loads, whole.splitlines())}

    def append(self, record: dict) -> None:
        """Adds one cell's record, on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["cell"]] = plain(record)

    def merge(self, path: pathlib.Path) -> None:
        """Adds the whole records of another file, which is left as it is."""
        whole = pathlib.Path(path).read_bytes()
        for record in map(json.loads, whole[: whole.rfind(b"\n") + 1].splitlines()):
            if record["cell"] not in self.records:
                self.append(record)

    def sort(self, names: list[str]) -> None:
        """Puts the records into the grid's order, whatever order the workers finished in."""
        temporary = self._path.with_suffix(".partial")
        temporary.write_bytes(b"".join(_line(self.records[name]) for name in names))
        temporary.replace(self._path)


def _line(record: dict) -> bytes:
    return (json.dumps(plain(record)) + "\n").encode()


def run_cells(
    cells: dict[str, ConfigDict], *, max_lag: int, freeze_after: int, chunk_size: int, num_workers: int
) -> Iterator[dict]:
    """Trains the cells and yields a record for each as its chunk finishes, in no fixed order.

    Args:
      cells: the config of each cell, by name.
      max_lag: the largest lag of the whole sweep, also of cells that are not run now: it shapes the program.
      freeze_after: see `sweep.make_cell_program`.
      chunk_size: cells vectorized together in a worker; they differ in seed, learning rate and lag alone.
      num_workers: processes, each on a core of its own.

    Raises:
      concurrent.futures.process.BrokenProcessPool: if a worker is killed.
    """
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:num_workers]:
        cores.put(core)
    folder = str(jax.config.jax_compilation_cache_dir or "")
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(cores, os.getpid(), folder)
    ) as pool:
        warm_starts = {json.dumps([c.task.to_dict(), c.policy.to_dict(), c.warm_start.to_dict()]): c
                       for c in cells.values() if c.warm_start.steps}  # fmt: skip
        for made in [pool.submit(_make_warm_start, config.to_dict()) for config in warm_starts.values()]:
            made.result()
        futures = [
            pool.submit(_run_chunk, chunk, max_lag, freeze_after, chunk_size) for chunk in _chunks(cells, chunk_size)
        ]
        for future in concurrent.futures.as_completed(futures):
            yield from future.result()


def _chunks(cells: dict[str, ConfigDict], chunk_size: int) -> list[list[tuple[str, dict]]]:
    """The cells in chunks; those of one chunk share a program."""
    by_program: dict[str, list] = {}
    for name, config in cells.items():
        by_program.setdefault(_program_fields(config.to_dict()), []).append((name, config.to_dict()))
    return [group[i : i + chunk_size] for group in by_program.values() for i in range(0, len(group), chunk_size)]


def _program_fields(config: dict) -> str:
    """The config without what a program takes as data."""
    config = json.loads(json.dumps(plain(config)))
    for section, name in ((None, "seed"), (None, "lag"), ("warm_start", "seed"), ("optimizer", "learning_rate")):
        (config if section is None else config[section]).pop(name)
    return json.dumps(config, sort_keys=True)


def _start_worker(cores, parent: int, cache_folder: str) -> None:
    """Pins the worker to a core, and ends it when its parent is gone: a killed sweep leaves nothing running."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too: one that ends without a traceback of its own
    os.sched_setaffinity(0, {cores.get()})
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WORKER_XLA_FLAGS}"
    if cache_folder:
        jax.config.update("jax_compilation_cache_dir", cache_folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", compile_cache.MIN_COMPILE_SECONDS)

    def watch():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_warm_start(config: dict) -> None:
    """Puts a warm start into the cache before any cell asks for it."""
    config = ConfigDict(config)
    task, policy = sweep.sweep_parts(config)
    warm_start(policy, task, config)


@functools.cache
def _compiled(program_fields: str, max_lag: int, freeze_after: int, chunk_size: int):
    """The worker's compiled program for these fields; what they leave out is filled in and not read."""
    fields = json.loads(program_fields)
    fields["optimizer"]["learning_rate"] = 0.0
    program = sweep.make_cell_program(ConfigDict(fields), max_lag, freeze_after)
    return jax.jit(program if chunk_size == 1 else jax.vmap(program))


def _run_chunk(chunk: list[tuple[str, dict]], max_lag: int, freeze_after: int, chunk_size: int) -> list[dict]:
    """Trains the cells of one chunk, filled up with copies of its first cell to the compiled shape."""
    start = time.perf_counter()
    configs = [ConfigDict(config) for _, config in chunk]
    inputs = [sweep.cell_inputs(config) for config in configs]
    program = _compiled(_program_fields(chunk[0][1]), max_lag, freeze_after, chunk_size)
    if chunk_size == 1:
        traces = [jax.device_get(program(inputs[0]))]
    else:
        inputs += inputs[:1] * (chunk_size - len(inputs))
        stacked = jax.device_get(program(jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *inputs)))
        traces = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(chunk))]
    seconds = (time.perf_counter() - start) / len(chunk)
    return [
        cell_record(name, config, trace) | {"time_cell": seconds}
        for (name, _), config, trace in zip(chunk, configs, traces, strict=False)
    ]


def cell_record(name: str, config: ConfigDict, traces: dict[str, np.ndarray]) -> dict:
    """A cell's line in cells.jsonl: what it is, how it ended, and its traces as means over `eval_every` steps.

    `cosine`, `drift` (root mean square distance from the behavior policy) and `clip_fraction` are medians over the
    blocks before the collapse, or over all.
    """
    every = config.eval_every
    blocks = {
        metric: values if metric in sweep.BY_BLOCK else values.reshape(-1, every).mean(axis=1)
        for metric, values in traces.items()
        if metric != "steps_run"
    }
    # The cosine of the first step has no predecessor and would leave its whole block empty.
    cosines = traces["gradient_cosine"].reshape(-1, every)
    blocks["gradient_cosine"] = np.where(np.isnan(cosines), 0, cosines).sum(1) / np.maximum(
        (~np.isnan(cosines)).sum(1), 1
    )
    steps_run = int(traces["steps_run"])
    reward = blocks["eval_reward"][: steps_run // every]
    finite = np.isfinite(traces["param_norm"][:steps_run]).all() and np.isfinite(traces["grad_norm"][:steps_run]).all()
    collapse = detect_collapse(reward, every, num_samples=config.num_prompts * config.group_size)
    end = steps_run if collapse is None else max(collapse.step, every)

    def median(metric):
        return float(np.median(blocks[metric][: end // every]))

    return {
        "cell": name,
        "max_lag": config.lag.max_lag,
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "warm_start_seed": config.warm_start.seed,
        "schedule": config.lag.schedule,
        "start": config.lag.start,
        "optimizer": config.optimizer.name,
        "steps": config.steps,
        "steps_run": steps_run,
        "finite": bool(finite),
        "first": float(reward[0]),
        "peak": float(reward.max()),
        "final": float(reward[-1]),
        "collapse_step": None if collapse is None else collapse.step,
        "collapse_interval": None if collapse is None else collapse.interval,
        "stayed_down": None if collapse is None else collapse.stayed_down,
        "fall_steps": None if collapse is None else collapse.fall_steps,
        "cosine": median("gradient_cosine"),
        "drift": median("drift_from_behavior"),
        "clip_fraction": median("clip_fraction"),
        "update_norm": median("update_norm"),
        "trace_every": every,
        "traces": {metric: _rounded(values[: steps_run // every]) for metric, values in blocks.items()},
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]
