"""Tells four outcomes of a run apart: learned, stalled, collapsed and recovered.

The outcomes follow from the evaluation rewards of the current policy alone: those on held-out
problems if a cell has them. The rewards need not be pass rates. They are averaged as in `collapse`,
and these numbers are compared:

    floor  the lowest reward of the task
    start  the first reward of the run
    peak   the highest average of the run
    end    the last average of the run
    best   the highest average of any run with the same task, which shows what can be reached

A run falls if its average stays below the middle between floor and peak (`detect_collapse`).

    collapsed  the run falls, and ends below that middle. Or its parameters are not finite.
    recovered  the run falls, and ends above that middle.
    learned    the run does not fall, and gains at least LEARNED_FRACTION of what can be gained:
               end - start >= LEARNED_FRACTION (best - start), and more than its noise.
    stalled    the run does not fall, and gains less.

So a run is stable if it learned or stalled, and it is usable only if it learned.
"""

import numpy as np

from staleness_grpo.scaling.collapse import averages, is_down, noise_of_average

OUTCOMES = LEARNED, STALLED, COLLAPSED, RECOVERED = "learned", "stalled", "collapsed", "recovered"
LEARNED_FRACTION = 0.5
HELD_OUT = "heldout_reward"  # trace of the rewards on problems that training never draws
NOISE_FACTOR = 2.0  # a gain below so many standard deviations of the average is none


def outcomes(records: list[dict]) -> list[str]:
    """Returns the outcome of each cell of one map, of OUTCOMES.

    Args:
      records: lines of a sweep's cells.jsonl, all with the same task. What can be reached is the
        highest average of all of them. Cells that are left out can change the outcomes.
    """
    best = max(float(averages(_rewards(record)).max()) for record in records)
    return [outcome(record, best) for record in records]


def outcome(record: dict, best: float) -> str:
    """Returns the outcome of one cell, of OUTCOMES.

    Args:
      record: a line of a sweep's cells.jsonl.
      best: the highest average reward that any run with the same task reached.
    """
    reward_X = _rewards(record)
    average_X = averages(reward_X)
    if not record["finite"]:
        return COLLAPSED
    if record["collapse_step"] is not None:
        # Records of version 0.1 lack the field. All their rewards are pass rates.
        floor = min(record.get("lowest_reward", 0.0), float(reward_X.min()))
        ends_down = is_down(average_X, floor)[-1]
        return COLLAPSED if ends_down else RECOVERED
    start, gain = reward_X[0], average_X[-1] - reward_X[0]
    is_noise = gain <= NOISE_FACTOR * noise_of_average(reward_X)
    return STALLED if is_noise or gain < LEARNED_FRACTION * (best - start) else LEARNED


def count(records: list[dict]) -> dict[str, int]:
    """Returns how many cells have each outcome."""
    found = outcomes(records)
    return {name: found.count(name) for name in OUTCOMES}


def reward_trace(record: dict) -> list[float]:
    """Returns the rewards from which a cell's outcome follows, one for each evaluation."""
    return record["traces"].get(HELD_OUT, record["traces"]["eval_reward"])


def _rewards(record: dict) -> np.ndarray:
    return np.asarray(reward_trace(record), float)
