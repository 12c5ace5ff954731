"""Computes bootstrap intervals over whole groups.

A group holds all measurements that share one independent draw, such as a problem or a seed.
Measurements of one group are not independent of each other. So every interval resamples whole
groups.
"""

from collections.abc import Callable, Iterator

import numpy as np

CONFIDENCE = 0.95


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Returns the central 95 % percentile interval [2, ...] over the first axis, ignoring NaN."""
    tail = 50 * (1 - CONFIDENCE)
    return np.nanpercentile(np.asarray(values), [tail, 100 - tail], axis=0)


def resampled_rows(groups: np.ndarray, num_resamples: int) -> Iterator[np.ndarray]:
    """Draws whole groups with replacement, and yields the row numbers of each resample.

    The resamples are the same at every call.

    Args:
      groups: [n], the group label of each row.
      num_resamples: number of resamples.
    """
    rng = np.random.default_rng(0)
    labels = np.unique(groups)
    rows = {label: np.flatnonzero(groups == label) for label in labels}
    for _ in range(num_resamples):
        drawn = rng.choice(labels, len(labels))
        yield np.concatenate([rows[label] for label in drawn])


def group_interval(
    groups: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], num_resamples: int
) -> np.ndarray:
    """Returns the percentile interval [2, ...] of `statistic(rows)` over resampled groups.

    Args:
      groups: [n], the group label of each row.
      statistic: a function from row numbers [m] to an array. A resample with a NaN statistic is
        ignored.
      num_resamples: number of resamples.
    """
    values = [statistic(rows) for rows in resampled_rows(groups, num_resamples)]
    return percentile_interval(np.array(values))


def value_interval(
    values: np.ndarray,
    rng: np.random.Generator,
    num_resamples: int,
    statistic: Callable = np.mean,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic. Each group has one of the values [n]."""
    values = np.asarray(values)
    resampled = values[rng.integers(len(values), size=(num_resamples, len(values)))]
    low, high = percentile_interval(statistic(resampled, axis=1))
    return float(low), float(high)
