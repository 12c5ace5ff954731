"""Computes bootstrap intervals over whole groups.

A group is what was drawn independently: a problem, a seed. Measurements of one group share what was
drawn and are no independent evidence, so every interval resamples whole groups.
"""

from collections.abc import Callable, Iterator

import numpy as np

CONFIDENCE = 0.95


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Returns the central 95 % percentile interval [2, ...] over the first axis, without NaN."""
    tail = 50 * (1 - CONFIDENCE)
    return np.nanpercentile(np.asarray(values), [tail, 100 - tail], axis=0)


def resampled_rows(groups: np.ndarray, num_resamples: int) -> Iterator[np.ndarray]:
    """Yields row numbers of resamples in which whole groups are drawn with replacement.

    Args:
      groups: [n], the label of each row.
      num_resamples: how many resamples; they are the same at every call.
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
      groups: [n], the label of each row.
      statistic: row numbers [m] -> array; a resample for which it is NaN is left out.
      num_resamples: how many resamples.
    """
    values = [statistic(rows) for rows in resampled_rows(groups, num_resamples)]
    return percentile_interval(np.array(values))


def value_interval(
    values: np.ndarray,
    rng: np.random.Generator,
    num_resamples: int,
    statistic: Callable = np.mean,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic of values [n], one for each group."""
    values = np.asarray(values)
    resampled = values[rng.integers(len(values), size=(num_resamples, len(values)))]
    low, high = percentile_interval(statistic(resampled, axis=1))
    return float(low), float(high)
