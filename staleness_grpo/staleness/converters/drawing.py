"""Draws the lags of a step's groups from the mean, and perhaps the extremes, that were logged."""

import numpy as np

from staleness_grpo.staleness.converters.statistics import Counts, Statistics


def drawn_lags(logged: Statistics, num_groups: int, seed: int, counts: Counts) -> list[int]:
    """Draws the lags of the groups of one step. Same arguments, same lags.

    The sum is the integer nearest to mean * num_groups. With extremes, one group has the smallest
    lag and one the largest. The others start at the smallest lag. The rest of the sum is handed out
    one by one, each time to a random group below the largest lag. Without extremes, the lags are
    the two integers around the mean. The groups are then shuffled.

    Args:
      logged: what the trainer logged of the step.
      num_groups: the number of lags to draw.
      seed: the seed. A step's numbers depend on (seed, step) alone.
      counts: counts steps whose mean, or extremes, no integers can have.
    """
    random = np.random.default_rng([seed, logged.step % 2**32])
    total = round(logged.mean * num_groups)
    if logged.extremes is None:
        low, num_above = divmod(total, num_groups)
        lags = [low + 1] * num_above + [low] * (num_groups - num_above)
    else:
        lags = _between(*logged.extremes, total, num_groups, random, counts)
    return random.permutation(lags).tolist()


def _between(
    least: int, most: int, total: int, num_groups: int, random: np.random.Generator, counts: Counts
) -> list[int]:
    if least == most:
        return [least] * num_groups
    if num_groups == 1:
        counts["steps with one group, which has the mean and not both extremes"] += 1
        return [total]
    lags = np.full(num_groups, least)
    lags[-1] = most
    free, rest = lags[1:-1], total - int(lags.sum())  # `free` is a view: it changes `lags`
    possible = min(max(rest, 0), (most - least) * len(free))
    if rest != possible:
        counts["steps whose mean lies too near to an extreme for this number of groups"] += 1
    for _ in range(possible):
        free[random.choice(np.flatnonzero(free < most))] += 1
    return lags.tolist()
