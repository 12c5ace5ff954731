"""Fits by maximum likelihood, with censoring.

A run without a collapse within T counts as "collapses later than T". Both likelihoods are normal in
the logarithm. The probit models are fitted to whether cells collapsed. So a setting at which none
collapsed still bounds the threshold from below.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

# Collapse within a grid is nearly a step function. Without a floor the likelihood grows without
# bound as sigma falls.
SMALLEST_SIGMA = 0.05
FIRST_SIGMA = 0.3  # excess over the floor at which the search starts


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of a maximum-likelihood fit."""

    parameters: np.ndarray
    sigma: float  # residual standard deviation, in log space
    log_likelihood: float


def probit_log_likelihood(
    log_x: np.ndarray, log_threshold: np.ndarray, sigma: float, event: np.ndarray
) -> np.ndarray:
    """Returns the log-likelihood of each cell's outcome, with P(event) = Phi(z), [n].

    z = (log x - log threshold) / sigma.
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
      log_x: [n], the logarithm of what each cell was run at.
      event: [n] bool, whether it collapsed.
      log_threshold: maps parameters to the log threshold of each cell [n]. It may be infinite where
        a cell is always stable.
      starts: [number of starts, number of parameters], where the search begins.
    """

    def loss(packed: np.ndarray) -> float:
        sigma = SMALLEST_SIGMA + np.exp(packed[-1])
        return -np.sum(probit_log_likelihood(log_x, log_threshold(packed[:-1]), sigma, event))

    return _best(loss, starts)


def fit_censored_power_law(
    x: np.ndarray, y: np.ndarray, censored: np.ndarray, covariates: np.ndarray | None = None
) -> Fit:
    """Fits a power law to values of which some are only known to be larger.

    log y = a + b log x (+ c . covariates) + sigma * normal. This is a Tobit model in log space. Its
    parameters are (a, b, *c). If the censored runs were dropped, the law would bend towards early
    collapses, where they are common.

    Args:
      x: positive, [n].
      y: positive, [n]; where censored, a lower bound.
      censored: [n] bool.
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
    return _best(loss, guess[None])


def _best(loss: Callable[[np.ndarray], float], starts: np.ndarray) -> Fit:
    """Returns the lowest of the minima reached from the starts.

    The loss takes the parameters with log(sigma - SMALLEST_SIGMA) behind them. The search is a
    simplex search, because the rules have kinks.
    """
    options = dict(xatol=1e-4, fatol=1e-4, maxiter=4000, maxfev=4000)
    results = [
        minimize(loss, np.append(start, np.log(FIRST_SIGMA)), method="Nelder-Mead", options=options)
        for start in starts
    ]
    best = min(results, key=lambda result: result.fun)
    return Fit(best.x[:-1], SMALLEST_SIGMA + float(np.exp(best.x[-1])), -float(best.fun))
