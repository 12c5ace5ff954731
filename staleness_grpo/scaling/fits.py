"""Power laws with one constant for each group of measurements, and bootstrap intervals over groups.

A group is what was drawn independently (a problem, a seed). Cells of one group share their problem and are no
independent evidence, so every interval resamples whole groups.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = constant_g x^slope_g, fitted by least squares of the logarithms in each group g."""

    groups: np.ndarray  # the groups' labels, sorted
    slopes: np.ndarray  # of each group
    log_constants: np.ndarray  # of each group
    r_squared: float  # share of the variance of log y within groups that the fits explain
    num_points: int

    def predict(self, x: np.ndarray, group: np.ndarray) -> np.ndarray:
        """y at x [n] in the groups [n]."""
        index = np.searchsorted(self.groups, group)
        return np.exp(self.log_constants[index] + self.slopes[index] * np.log(x))


def fit_power_law(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> PowerLaw:
    """Fits a PowerLaw to positive x [n] and y [n] with group labels [n].

    Raises:
      ValueError: if a group has fewer than three points.
    """
    groups = np.unique(group)
    slopes, log_constants, residual, total = [], [], 0.0, 0.0
    for label in groups:
        log_x, log_y = np.log(x[group == label]), np.log(y[group == label])
        if len(log_x) < 3:
            raise ValueError(f"group {label} has {len(log_x)} points: a slope needs three or more")
        slope, log_constant = np.polyfit(log_x, log_y, 1)
        slopes.append(slope)
        log_constants.append(log_constant)
        residual += np.sum((log_y - slope * log_x - log_constant) ** 2)
        total += np.sum((log_y - log_y.mean()) ** 2)
    return PowerLaw(groups, np.array(slopes), np.array(log_constants), 1 - residual / total, len(x))


def bootstrap_interval(
    values: np.ndarray, rng: np.random.Generator, num_resamples: int, statistic: Callable = np.mean
) -> tuple[float, float]:
    """Percentile interval (95 %) of a statistic of independent values [n], one for each group."""
    values = np.asarray(values)
    resampled = values[rng.integers(len(values), size=(num_resamples, len(values)))]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(statistic(resampled, axis=1), [tail, 100 - tail])
    return float(low), float(high)
