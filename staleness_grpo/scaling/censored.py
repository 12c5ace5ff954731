"""Fits models by maximum likelihood to data that include runs without a collapse.

Such a run is censored: a collapse is only known to come later than the end of the run. Two models
are fitted, both with a normal distribution of the logarithm:
  a probit model of whether each cell collapsed. A setting at which no cell collapsed still gives a
  lower bound of the threshold;
  a Tobit model of values, some of which are only known to be larger than a bound.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

# Smallest sigma of a fit. On a grid, collapse is nearly a step function of the learning rate. So
# the likelihood would grow without bound as sigma falls.
SMALLEST_SIGMA = 0.05
FIRST_SIGMA = 0.3  # the search starts at sigma = SMALLEST_SIGMA + FIRST_SIGMA


@dataclasses.dataclass(frozen=True)
class Fit:
    """Holds the result of a maximum-likelihood fit."""

    parameters: np.ndarray
    sigma: float  # residual standard deviation, in log space
    log_likelihood: float


def probit_log_likelihood(
    log_x: np.ndarray, log_threshold: np.ndarray, sigma: float, event: np.ndarray
) -> np.ndarray:
    """Returns the log-likelihood [n] of each cell's outcome under a probit model.

    P(event) = Phi(z) with z = (log x - log threshold) / sigma.
    """
    z = (log_x - log_threshold) / sigma
    return log_ndtr(np.where(event, z, -z))


def fit_threshold(
    log_x: np.ndarray,
    event: np.ndarray,
    log_threshold: Callable[[np.ndarray], np.ndarray],
    starts: np.ndarray,
) -> Fit:
    """Fits the parameters of a threshold, and sigma, to binary outcomes by maximum likelihood.

    Args:
      log_x: [n], the logarithm of the setting of each cell, such as its learning rate.
      event: [n] bool, whether each cell collapsed.
      log_threshold: a function from parameters to the log threshold [n] of each cell. The threshold
        of a cell that is always stable may be infinite.
      starts: [number of starts, number of parameters], the parameters at which searches start.
    """

    def loss(packed: np.ndarray) -> float:
        sigma = SMALLEST_SIGMA + np.exp(packed[-1])
        return -np.sum(probit_log_likelihood(log_x, log_threshold(packed[:-1]), sigma, event))

    return _best_fit(loss, starts)


def fit_censored_power_law(
    x: np.ndarray, y: np.ndarray, censored: np.ndarray, covariates: np.ndarray | None = None
) -> Fit:
    """Fits a power law to values, some of which are only known to exceed a bound.

    log y = a + b log x (+ c . covariates) + sigma * normal. This is a Tobit model in log space. Its
    parameters are (a, b, *c). Without the censored runs, the law would be biased towards early
    collapses wherever censored runs are common.

    Args:
      x: positive, [n].
      y: positive, [n]. For a censored run it is a lower bound of the value.
      censored: [n] bool, whether the value is only known to exceed y.
      covariates: [n, number of covariates] or None.
    """
    columns = [np.ones(len(x)), np.log(x)]
    design = np.column_stack(columns if covariates is None else [*columns, *covariates.T])
    log_y = np.log(y)

    def loss(packed: np.ndarray) -> float:
        sigma = SMALLEST_SIGMA + np.exp(packed[-1])
        z = (log_y - design @ packed[:-1]) / sigma
        return -np.sum(
            np.where(censored, log_ndtr(-z), -0.5 * z**2 - np.log(sigma * np.sqrt(2 * np.pi)))
        )

    guess = np.linalg.lstsq(design, log_y, rcond=None)[0]
    return _best_fit(loss, guess[None])


def _best_fit(loss: Callable[[np.ndarray], float], starts: np.ndarray) -> Fit:
    """Searches from every start and returns the fit with the lowest loss.

    The argument of the loss is the parameters, followed by log(sigma - SMALLEST_SIGMA). The search
    is a simplex search, because the rules are not smooth everywhere.
    """
    options = dict(xatol=1e-4, fatol=1e-4, maxiter=4000, maxfev=4000)
    results = [
        minimize(loss, np.append(start, np.log(FIRST_SIGMA)), method="Nelder-Mead", options=options)
        for start in starts
    ]
    best = min(results, key=lambda result: result.fun)
    return Fit(best.x[:-1], SMALLEST_SIGMA + float(np.exp(best.x[-1])), -float(best.fun))
