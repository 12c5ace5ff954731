"""The record of a cell, and the file that keeps a sweep's records."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.runtime.records import Appender, plain, read_jsonl, write_jsonl
from staleness_grpo.scaling.collapse import detect_collapse
from staleness_grpo.sweeps.program import EVALUATION_METRICS

SIGNIFICANT_DIGITS = 6  # of a trace


class CellFile:
    """Keeps the records of a sweep's cells, one line each, durable as soon as it is appended.

    A last line that a kill cut short counts for nothing, and is dropped at the next append.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        records = read_jsonl(path) if path.exists() else []
        self.records: dict[str, dict] = {record["cell"]: record for record in records}

    def append(self, record: dict) -> None:
        """Adds one cell's record, which is on disk when this returns."""
        with Appender(self._path, durable=True) as file:
            file.append(record)
        self.records[record["cell"]] = plain(record)

    def merge(self, path: pathlib.Path) -> None:
        """Adds the whole records of another file, which is left as it is."""
        for record in read_jsonl(path):
            if record["cell"] not in self.records:
                self.append(record)

    def sort(self, names: list[str]) -> None:
        """Puts the records into the grid's order, whatever order the workers finished in."""
        write_jsonl(self._path, (self.records[name] for name in names))


def cell_record(name: str, config: ConfigDict, traces: Mapping[str, Any]) -> dict:
    """Returns a cell's line in cells.jsonl: what the cell is, how it ended, and its traces.

    Traces are means over the `eval_every` learner steps of a block. `cosine`, `drift`,
    `clip_fraction` and `update_norm` are medians over the blocks before the collapse, or over all
    blocks without one. `drift` is the distance from the behavior policy's parameters.

    Args:
      name: the cell's name, unique in its file.
      config: the cell's training.
      traces: what `program.make_cell_program` returns, on the host.
    """
    every = config.eval_every
    blocks = {
        metric: values if metric in EVALUATION_METRICS else values.reshape(-1, every).mean(axis=1)
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
    finite = (
        np.isfinite(traces["param_norm"][:steps_run]).all()
        and np.isfinite(traces["grad_norm"][:steps_run]).all()
    )
    collapse = detect_collapse(reward, every, num_samples=config.num_prompts * config.group_size)
    end = steps_run if collapse is None else max(collapse.step, every)

    def median(metric: str) -> float:
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
        "traces": {
            metric: _rounded(values[: steps_run // every]) for metric, values in blocks.items()
        },
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]
