"""Fits power laws with one constant for each group of measurements."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """Holds laws y = constant_g x^slope_g, fitted to the logarithms of each group g."""

    groups: np.ndarray  # group labels, sorted
    slopes: np.ndarray  # one for each group
    log_constants: np.ndarray  # one for each group
    r_squared: float  # explained share of the variance of log y within groups
    num_points: int

    def predict(self, x: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Returns the predicted y [n] at x [n], each in the group with label `group` [n]."""
        index = np.searchsorted(self.groups, group)
        return np.exp(self.log_constants[index] + self.slopes[index] * np.log(x))


def fit_power_law(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> PowerLaw:
    """Fits a power law by least squares of the logarithms in each group.

    Args:
      x: positive, [n].
      y: positive, [n].
      group: [n], the group label of each point.

    Raises:
      ValueError: a group has fewer than three points.
    """
    groups = np.unique(group)
    slopes, log_constants, residual, total = [], [], 0.0, 0.0
    for label in groups:
        log_x, log_y = np.log(x[group == label]), np.log(y[group == label])
        if len(log_x) < 3:
            hint = "give at least three points for a slope"
            raise ValueError(f"group {label} has {len(log_x)} points: {hint}")
        slope, log_constant = np.polyfit(log_x, log_y, 1)
        slopes.append(slope)
        log_constants.append(log_constant)
        residual += np.sum((log_y - slope * log_x - log_constant) ** 2)
        total += np.sum((log_y - log_y.mean()) ** 2)
    return PowerLaw(groups, np.array(slopes), np.array(log_constants), 1 - residual / total, len(x))
