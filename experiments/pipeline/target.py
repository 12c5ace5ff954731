"""Joins a map of trainings over S and eta with seconds per learner step: the time to a reward.

This is the place where the two sides of staleness meet. More lag makes steps faster, and trainings
worse. All functions are pure: records in, numbers out.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from staleness_grpo.scaling.collapse import averages
from staleness_grpo.scaling.outcomes import reward_trace


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
