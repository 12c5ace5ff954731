"""Computes the numbers of summary.json from trainings in simulated pipelines."""

from collections import defaultdict
from typing import Any

import numpy as np

from experiments.clock.measure import SIMULATED
from staleness_grpo.scaling.bootstrap import value_interval

NUM_RESAMPLES = 2000
FRACTIONS = (0.25, 0.5, 1.0)  # of the time, at which rewards are compared
BY_PROMPT = ("reward_by_prompt", "length_by_prompt", "trained_by_prompt")


def summarize(cells: list[dict]) -> dict[str, Any]:
    """Returns summary.json without claims.

    Returns:
      A dictionary with the keys:

      - `num_cells`, `num_seeds`: counts.
      - `seconds`: the simulated time that all trainings have reached, without those that collapsed.
      - `by_rule`: by buffer rule and then by S, the result of `average`.
    """
    lasting = [cell for cell in cells if not cell["collapsed"]] or cells
    seconds = min(cell["times"][-1] for cell in lasting)
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        grouped[cell["buffer"]][str(cell["max_lag"])].append(cell)
    return {
        "num_cells": len(cells),
        "num_seeds": len({cell["seed"] for cell in cells}),
        "seconds": seconds,
        "by_rule": {
            buffer: {lag: average(found, seconds) for lag, found in by_lag.items()}
            for buffer, by_lag in grouped.items()
        },
    }


def average(cells: list[dict], seconds: float) -> dict[str, Any]:
    """Returns means over seeds. A mean is None where a training has no such number.

    Returns:
      `reward_at`: by fraction of the time, the mean reward; `reward_interval` has its 95 %
      interval over seeds. `collapsed` is a number of trainings. The rest are means of the fields of
      cells.jsonl, those by prompt as lists.
    """
    rng = np.random.default_rng(0)
    reward_at, intervals = {}, {}
    for fraction in FRACTIONS:
        rewards = np.array([reward(cell, fraction * seconds) for cell in cells])
        reward_at[f"{fraction:g}"] = float(rewards.mean())
        intervals[f"{fraction:g}"] = list(value_interval(rewards, rng, NUM_RESAMPLES))
    numbers: dict[str, Any] = {
        "reward_at": reward_at,
        "reward_interval": intervals,
        "collapsed": sum(cell["collapsed"] for cell in cells),
        "learner_steps": float(np.mean([cell["learner_steps"] for cell in cells])),
    }
    for name in SIMULATED:
        numbers[name] = _mean([cell[name] for cell in cells])
    for name in BY_PROMPT:
        if all(name in cell for cell in cells):
            columns = zip(*(cell[name] for cell in cells), strict=True)
            numbers[name] = [_mean(list(column)) for column in columns]
    return numbers


def reward(cell: dict, seconds: float) -> float:
    """Returns the reward at a simulated time, on the line between two evaluations.

    After the last evaluation it stays as it was, also if the training has collapsed.
    """
    return float(np.interp(seconds, cell["times"], cell["eval_reward"]))


def _mean(values: list) -> float | None:
    return None if None in values else float(np.mean(values))
