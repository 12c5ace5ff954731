"""Makes a cell's record, and stores a sweep's records in one file."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.runtime.records import Appender, plain, read_jsonl, write_jsonl
from staleness_grpo.scaling.collapse import Collapse, detect_collapse
from staleness_grpo.scaling.outcomes import HELD_OUT
from staleness_grpo.sweeps.program import EVALUATION_METRICS, FAILURES
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import lowest_reward
from staleness_grpo.training import heldout

SIGNIFICANT_DIGITS = 6  # kept of each trace value


class CellFile:
    """Stores the records of a sweep's cells in a file, one line each.

    A record is on disk when `append` returns. An incomplete last line, left by a killed process, is
    ignored on reading and removed by the next append.

    Attributes:
      records: the record of each cell, by the cell's name.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        records = read_jsonl(path) if path.exists() else []
        self.records: dict[str, dict] = {record["cell"]: record for record in records}

    def append(self, record: dict) -> None:
        """Appends one cell's record and returns when the record is on disk."""
        with Appender(self._path, durable=True) as file:
            file.append(record)
        self.records[record["cell"]] = plain(record)

    def merge(self, path: pathlib.Path) -> None:
        """Copies complete records of cells that this file lacks. The other file is not changed."""
        for record in read_jsonl(path):
            if record["cell"] not in self.records:
                self.append(record)

    def sort(self, names: list[str]) -> None:
        """Rewrites the file in the order of `names`, whatever order the workers finished in.

        Records of other names stay, at the end.
        """
        others = [name for name in self.records if name not in set(names)]
        write_jsonl(self._path, (self.records[name] for name in (*names, *others)))


def cell_record(name: str, config: ConfigDict, traces: Mapping[str, Any]) -> dict:
    """Returns a cell's line in cells.jsonl: its settings, its outcome and its traces.

    A block is `eval_every` consecutive learner steps. Each trace has one value for each block, the
    mean over the block's steps. Evaluation traces have the value measured at the block's start.

    `cosine`, `drift`, `clip_fraction` and `update_norm` are medians over the blocks before the
    collapse. Without a collapse they are medians over all blocks. `drift` is the distance from the
    behavior policy's parameters, None if it was not measured.

    If the cell has held-out rewards, its outcome follows from them. If the parameters become not
    finite before the reward falls for good, `collapse_step` is the step at which the cell ended.

    Args:
      name: the cell's name, unique in its file.
      config: the config of the cell's training.
      traces: the result of the function from `program.make_cell_program`, on the host, or that of
        `trainings.traces_of`.
    """
    block_steps = config.eval_every
    blocks = {
        metric: values
        if metric in (*EVALUATION_METRICS, HELD_OUT)
        else values.reshape(-1, block_steps).mean(axis=1)
        for metric, values in traces.items()
        if metric not in ("steps_run", FAILURES)
    }
    # The first step has no previous gradient, so its cosine is NaN. A plain mean would be NaN for
    # its whole block.
    cosines = traces["gradient_cosine"].reshape(-1, block_steps)
    blocks["gradient_cosine"] = np.where(np.isnan(cosines), 0, cosines).sum(1) / np.maximum(
        (~np.isnan(cosines)).sum(1), 1
    )
    steps_run = int(traces["steps_run"])
    is_held_out = HELD_OUT in blocks
    reward = blocks[HELD_OUT if is_held_out else "eval_reward"][: steps_run // block_steps]
    # The norm of the parameters is that before an update, which may be the last one.
    norms = [traces[name][:steps_run] for name in ("param_norm", "grad_norm", "update_norm")]
    is_finite = np.isfinite(norms).all()
    task = make_task(config.task, config.policy.checkpoint)
    floor = lowest_reward(task)
    num_samples = config.num_prompts * config.group_size
    if is_held_out:
        num_samples = len(heldout.problems(config, task)[1]) * config.heldout.num_samples
    collapse = detect_collapse(reward, block_steps, num_samples, floor)
    if collapse is None and not is_finite:  # the run ended there, so no fall of its reward lasts
        collapse = Collapse(steps_run, (steps_run, steps_run), stayed_down=True, fall_steps=0)
    end = steps_run if collapse is None else max(collapse.step, block_steps)

    def median(metric: str) -> float | None:
        if metric not in blocks:
            return None
        values = blocks[metric][: end // block_steps]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else None

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
        "finite": bool(is_finite),
        "reward_errors": int(np.nansum(traces[FAILURES])),
        "lowest_reward": floor,
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
        "trace_every": block_steps,
        "traces": {
            metric: _rounded(values[: steps_run // block_steps])
            for metric, values in blocks.items()
        },
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values]
