"""Makes the record of a cell from a training of the loop, as if the cell had run compiled."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.scaling.outcomes import HELD_OUT
from staleness_grpo.sweeps.program import (
    CEILING_EVERY,
    DRIFT_METRICS,
    EVALUATION_METRICS,
    FAILURES,
    FREEZE_FRACTION,
    GUARD_METRICS,
    UPDATE_METRICS,
)


def traces_of(records: list[dict], config: ConfigDict) -> dict[str, Any]:
    """Returns the traces of a training in the form of `program.make_cell_program`.

    A training that ends inside a block of `eval_every` steps, because it is not finite, is filled
    up with NaN to the end of the block. A metric that the training did not record is left out. The
    ceiling of the gradient cosine is kept at every CEILING_EVERY-th evaluation, as in a compiled
    cell.

    Args:
      records: the lines of the training's metrics.jsonl, up to the step at which the cell ends.
      config: the training's config.
    """
    every = config.eval_every
    num_blocks = math.ceil(len(records) / every)
    traces: dict[str, Any] = {"steps_run": num_blocks * every}
    for name in (*UPDATE_METRICS, *GUARD_METRICS, *DRIFT_METRICS, FAILURES):
        if name in records[0]:
            values = np.full(num_blocks * every, np.nan)
            values[: len(records)] = _numbers(records, name)
            traces[name] = values
    evaluated = records[::every]
    for name in (*EVALUATION_METRICS, HELD_OUT):
        if name in records[0]:
            traces[name] = _numbers(evaluated, name)
    if "gradient_cosine_ceiling" in traces:
        is_measured = np.arange(num_blocks) % CEILING_EVERY == 0
        ceiling = traces["gradient_cosine_ceiling"]
        traces["gradient_cosine_ceiling"] = np.where(is_measured, ceiling, np.nan)
    return traces


def freeze_rule(
    config: ConfigDict, freeze_after: int, floor: float
) -> Callable[[list[dict]], bool]:
    """Returns a function that says, after each step, whether a training ends early.

    The rule is that of a compiled cell: the last evaluation with at least FREEZE_FRACTION of the
    peak reward is more than `freeze_after` learner steps ago. Heights are measured from the floor.

    Args:
      config: the training's config.
      freeze_after: learner steps with a low reward after which a training ends.
      floor: the lowest reward of the task.

    Returns:
      A function of the records so far. It is True only at the end of a block of `eval_every` steps.
    """
    every = config.eval_every

    def ends(records: list[dict]) -> bool:
        if len(records) % every:
            return False
        reward_X = _numbers(records[::every], "eval_reward")
        peak_X = np.maximum(np.maximum.accumulate(reward_X), floor)
        is_high_X = reward_X - floor >= FREEZE_FRACTION * (peak_X - floor)
        last_high = np.flatnonzero(is_high_X)[-1] if is_high_X.any() else 0
        return bool((len(reward_X) - last_high) * every > freeze_after)

    return ends


def _numbers(records: list[dict], name: str) -> np.ndarray:
    """Returns a field of the records as floats. A file of JSON lines has null for NaN."""
    return np.array([record[name] for record in records], float)
