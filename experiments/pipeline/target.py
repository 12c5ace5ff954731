"""Joins a map of trainings over S and eta with seconds per learner step: the time to a reward.

This is the place where the two sides of staleness meet. More lag makes steps faster, and trainings
worse. All functions are pure: records in, numbers out.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from staleness_grpo.scaling.bootstrap import percentile_interval, resampled_rows
from staleness_grpo.scaling.collapse import averages
from staleness_grpo.scaling.outcomes import reward_trace

RESAMPLES = 200  # of the seeds, for the intervals of the best lag
FLAT = 1.1  # a lag with at most this many times the shortest time is as good


def steps_to_target(cell: dict[str, Any], target: float) -> float:
    """Returns the learner steps after which a training's reward is at the target.

    Args:
      cell: a line of a sweep's cells.jsonl.
      target: the reward. It is compared with the average that `staleness_grpo.scaling.collapse`
        takes, so that a single lucky evaluation does not count.

    Returns:
      The step of the first evaluation at or above the target; infinity if there is none.
    """
    average_X = averages(np.asarray(reward_trace(cell), float))
    reached = np.flatnonzero(average_X >= target)
    return float(reached[0] * cell["trace_every"]) if len(reached) else math.inf


def median_steps(cells: list[dict], target: float) -> dict[tuple[int, float], float]:
    """Returns the median over seeds of `steps_to_target`, by (S, eta).

    The median is infinite if half of the seeds or more do not reach the target.
    """
    steps = defaultdict(list)
    for cell in cells:
        steps[cell["max_lag"], cell["learning_rate"]].append(steps_to_target(cell, target))
    return {key: upper_median(values) for key, values in sorted(steps.items())}


def upper_median(values: list[float]) -> float:
    """Returns the middle value, or the larger of the two; infinities are values as others."""
    return sorted(values)[len(values) // 2]


def time_to_target(
    steps: dict[tuple[int, float], float], seconds_per_step: dict[int, float]
) -> list[dict[str, Any]]:
    """Returns the time to the target by S, at the learning rate at which it is shortest.

    Args:
      steps: learner steps to the target by (S, eta).
      seconds_per_step: seconds of a learner step by S.

    Returns:
      A record for each S that both have, in increasing order: `max_lag`, `learning_rate`, `steps`,
      `seconds_per_step` and `seconds`. Learning rate, steps and seconds are None where no learning
      rate reaches the target.
    """
    records = []
    for max_lag in sorted({lag for lag, _ in steps} & set(seconds_per_step)):
        needed = {eta: number for (lag, eta), number in steps.items() if lag == max_lag}
        best = min(needed, key=lambda eta: (needed[eta], eta))
        reached = math.isfinite(needed[best])
        seconds = seconds_per_step[max_lag]
        records.append(
            {
                "max_lag": max_lag,
                "learning_rate": best if reached else None,
                "steps": needed[best] if reached else None,
                "seconds_per_step": seconds,
                "seconds": needed[best] * seconds if reached else None,
            }
        )
    return records


def best_lag(
    cells: list[dict], target: float, seconds_per_step: dict[int, float]
) -> dict[str, Any] | None:
    """Returns the S with the shortest time to the target, with intervals over the map's seeds.

    Args:
      cells: lines of a sweep's cells.jsonl.
      target: the reward.
      seconds_per_step: seconds of a learner step by S.

    Returns:
      `max_lag` and `seconds` with `max_lag_interval` and `seconds_interval`, each the central 95 %
      of RESAMPLES resamples of the seeds. `flat_lags` are all S whose time is at most FLAT times
      the shortest. `unreached_share` is the share of the resamples in which no S reaches the
      target; the intervals leave them out. None if no S reaches the target.
    """

    def times(chosen: list[dict]) -> dict[int, float]:
        records = time_to_target(median_steps(chosen, target), seconds_per_step)
        return {r["max_lag"]: r["seconds"] for r in records if r["seconds"] is not None}

    found = times(cells)
    if not found:
        return None
    best = min(found, key=lambda lag: found[lag])
    drawn = []
    for rows in resampled_rows(np.array([cell["seed"] for cell in cells]), RESAMPLES):
        if resampled := times([cells[row] for row in rows]):
            lag = min(resampled, key=lambda lag: resampled[lag])
            drawn.append((lag, resampled[lag]))
    lags, seconds = np.array(drawn).T
    return {
        "max_lag": best,
        "max_lag_interval": percentile_interval(lags),
        "seconds": found[best],
        "seconds_interval": percentile_interval(seconds),
        "flat_lags": [lag for lag, time in found.items() if time <= FLAT * found[best]],
        "unreached_share": 1 - len(drawn) / RESAMPLES,
    }
