"""Laws fitted to measurements of which some are known as bounds alone: censored cells count for what they say.

Both likelihoods are normal in the logarithm. The probit models are fitted to whether cells collapsed, so a setting
at which none did still bounds the threshold from below; the collapse-time law takes a run without a collapse
within T as a collapse time above T.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

# Collapse within a grid is nearly a step function; without a floor the likelihood grows without bound as sigma falls.
SMALLEST_SIGMA = 0.05


@dataclasses.dataclass(frozen=True)
class Fit:
    """Maximum-likelihood parameters, the residual standard deviation in log space, and the log-likelihood."""

    parameters: np.ndarray
    sigma: float
    log_likelihood: float


def probit_log_likelihood(log_x: np.ndarray, log_threshold: np.ndarray, sigma: float, event: np.ndarray) -> np.ndarray:
    """log P(event) of each cell, P = Phi((log x - log threshold) / sigma)."""
    z = (log_x - log_threshold) / sigma
    return log_ndtr(np.where(event, z, -z))


def fit_threshold(
    log_x: np.ndarray, event: np.ndarray, log_threshold: Callable[[np.ndarray], np.ndarray], starts: np.ndarray
) -> Fit:
    """Fits parameters of a threshold to binary outcomes, with sigma, by maximum likelihood from several starts.

    Args:
      log_x: [n], the logarithm of what each cell was run at.
      event: [n] bool, whether it collapsed.
      log_threshold: parameters [p] -> log threshold of each cell [n]; may be infinite where a cell is always stable.
      starts: [k, p].
    """

    def loss(packed):
        sigma = SMALLEST_SIGMA + np.exp(packed[-1])
        return -np.sum(probit_log_likelihood(log_x, log_threshold(packed[:-1]), sigma, event))

    return _best(loss, starts)


def fit_censored_power_law(
    x: np.ndarray, y: np.ndarray, censored: np.ndarray, covariates: np.ndarray | None = None
) -> Fit:
    """log y = a + b log x (+ c . covariates) + sigma * normal; where `censored`, y is only known to be larger.

    A Tobit model in log space: parameters are (a, b, *c). Dropping the censored runs instead would bend the law
    towards early collapses, where they are common.

    Args:
      x, y: positive, [n].
      censored: [n] bool.
      covariates: [n, q] or None.
    """
    columns = [np.ones(len(x)), np.log(x)]
    design = np.column_stack(columns if covariates is None else [*columns, *covariates.T])
    log_y = np.log(y)

    def loss(packed):
        sigma = SMALLEST_SIGMA + np.exp(packed[-1])
        z = (log_y - design @ packed[:-1]) / sigma
        return -np.sum(np.where(censored, log_ndtr(-z), -0.5 * z**2 - np.log(sigma * np.sqrt(2 * np.pi))))

    guess = np.linalg.lstsq(design, log_y, rcond=None)[0]
    return _best(loss, guess[None])


def _best(loss: Callable[[np.ndarray], float], starts: np.ndarray) -> Fit:
    """The lowest of the minima reached from the starts; sigma starts at 0.3. Simplex search: the rules have kinks."""
    options = dict(xatol=1e-4, fatol=1e-4, maxiter=4000, maxfev=4000)
    results = [minimize(loss, np.append(start, np.log(0.3)), method="Nelder-Mead", options=options) for start in starts]
    best = min(results, key=lambda result: result.fun)
    return Fit(best.x[:-1], SMALLEST_SIGMA + float(np.exp(best.x[-1])), -float(best.fun))


def bootstrap(
    groups: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], num_resamples: int, confidence: float = 0.95
) -> np.ndarray:
    """Percentile interval [2, ...] of statistic(rows), where whole groups of rows are drawn with replacement.

    Args:
      groups: [n], the label (a seed) of each row.
      statistic: row numbers [m] -> array; a resample for which it is NaN is left out.
    """
    rng = np.random.default_rng(0)
    labels = np.unique(groups)
    rows = {label: np.flatnonzero(groups == label) for label in labels}
    values = [
        statistic(np.concatenate([rows[label] for label in rng.choice(labels, len(labels))]))
        for _ in range(num_resamples)
    ]
    tail = 50 * (1 - confidence)
    return np.nanpercentile(np.array(values), [tail, 100 - tail], axis=0)
