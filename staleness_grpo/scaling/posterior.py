"""Draws from a posterior distribution of a few constants, by importance sampling.

The proposal is a t distribution, at first that of the prior or one around the largest density. In a
few rounds it is moved to the mean and the covariance of its weighted draws. The random numbers are
the same at every call.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.stats import multivariate_t

ROUNDS, DRAWS, KEPT = 4, 2000, 2000  # DRAWS in each round, of which the last one's are KEPT
FREEDOM = 5  # degrees of freedom of the proposal, whose tails are wider than a normal's
WIDENED = 1.3  # factor on the proposal's covariance
ENOUGH = 50.0  # effective draws from the prior with which it is a good first proposal


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Holds draws of the constants, all with the same weight."""

    constants: np.ndarray  # [KEPT, d]
    mode: np.ndarray  # [d], where the density is largest
    effective: float  # number of independent draws that the weighted draws are worth

    def interval(self, values: np.ndarray, share: float = 0.9) -> tuple[float, float, float]:
        """Returns the median of one value per draw, and the ends of its central interval."""
        tail = 50 * (1 - share)
        median, low, high = np.percentile(values, [50, tail, 100 - tail])
        return float(median), float(low), float(high)


def largest(
    log_likelihood: Callable[[np.ndarray], np.ndarray], mean: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Returns the constants [d] with the largest posterior density. Arguments as in `posterior`."""
    log_density = _log_density(log_likelihood, mean, spread)
    # The search starts at the best of many draws from the prior.
    drawn = mean + spread * np.random.default_rng(0).normal(size=(DRAWS, len(mean)))
    start = drawn[np.argmax(log_density(drawn))]
    found = minimize(
        lambda scaled: -log_density((mean + spread * scaled)[None])[0],
        (start - mean) / spread,
        method="Nelder-Mead",
        options=dict(maxiter=4000, maxfev=4000, xatol=1e-4, fatol=1e-5),
    )
    return mean + spread * found.x


def posterior(
    log_likelihood: Callable[[np.ndarray], np.ndarray], mean: np.ndarray, spread: np.ndarray
) -> Posterior:
    """Draws from the posterior of d constants with independent normal priors.

    Args:
      log_likelihood: maps constants [m, d] to the log-likelihoods [m] of all data.
      mean, spread: [d], mean and standard deviation of the prior of each constant.
    """
    log_density = _log_density(log_likelihood, mean, spread)
    mode = largest(log_likelihood, mean, spread)
    rng = np.random.default_rng(1)
    # Where data say little, or from one side alone, the prior is the better first proposal.
    found = _weighted(log_density, mean, np.diag(spread**2), rng)
    if found.effective < ENOUGH:
        found = _weighted(log_density, mode, _curvature(log_density, mode, spread), rng)
    for _ in range(ROUNDS):
        if found.effective > 2 * len(mean):  # fewer draws have no covariance
            center = found.weight @ found.drawn
            moved = found.drawn - center
            covariance = np.einsum("m,mi,mj->ij", found.weight, moved, moved)
            found = _weighted(log_density, center, covariance, rng)
    places = (rng.uniform() + np.arange(KEPT)) / KEPT
    rows = np.searchsorted(np.cumsum(found.weight), places).clip(max=DRAWS - 1)
    return Posterior(found.drawn[rows], mode, found.effective)


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """Holds draws [DRAWS, d] from a proposal, and their weights [DRAWS], whose sum is 1."""

    drawn: np.ndarray
    weight: np.ndarray
    effective: float


def _weighted(
    log_density: Callable[[np.ndarray], np.ndarray],
    center: np.ndarray,
    covariance: np.ndarray,
    rng: np.random.Generator,
) -> _Weighted:
    """Draws from a t distribution, and weights the draws by the density."""
    proposal = multivariate_t(center, WIDENED * covariance, FREEDOM, allow_singular=True)
    drawn = proposal.rvs(DRAWS, random_state=rng).reshape(DRAWS, len(center))
    log_weight = log_density(drawn) - proposal.logpdf(drawn)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return _Weighted(drawn, weight, float(1.0 / np.square(weight).sum()))


def _log_density(
    log_likelihood: Callable[[np.ndarray], np.ndarray], mean: np.ndarray, spread: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from constants [m, d] to their log posterior density [m]."""

    def log_density(constants: np.ndarray) -> np.ndarray:
        prior = -0.5 * np.square((constants - mean) / spread).sum(axis=-1)
        return log_likelihood(constants) + prior

    return log_density


def _curvature(
    log_density: Callable[[np.ndarray], np.ndarray], mode: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Returns the covariance [d, d] of a normal with the same curvature at the mode.

    It is never wider than the prior, whose standard deviations are `spread`.
    """
    step = 0.05 * spread
    size = len(mode)
    hessian = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            corners = np.array(
                [
                    mode + a * step * np.eye(size)[i] + b * step * np.eye(size)[j]
                    for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))
                ]
            )
            values = log_density(corners)
            second = (values[0] - values[1] - values[2] + values[3]) / (4 * step[i] * step[j])
            hessian[i, j] = -second * spread[i] * spread[j]
    eigenvalues, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    covariance = (vectors / np.maximum(eigenvalues, 1.0)) @ vectors.T
    return covariance * np.outer(spread, spread)
