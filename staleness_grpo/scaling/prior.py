"""Fits the constants of the law of collapse, with priors from other settings.

The constants are those of `collapse_law.NAMES` for the saturating law. S0 is compared with the
memory of the optimizer's momentum, 1 / (1 - b1) learner steps.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from staleness_grpo.scaling.collapse_law import NAMES, Runs, log_likelihood, log_median
from staleness_grpo.scaling.posterior import Posterior, largest, posterior

# A prior that says little. The learning rate eta_ref is the middle of the grid.
_VAGUE_MEAN = {
    "log_time": np.log(200.0),
    "b": 1.5,
    "of_lag": np.log(10.0),
    "log_cap": 1.5,
    "log_sigma": np.log(0.4),
}
_VAGUE_SPREAD = {"log_time": 2.0, "b": 0.5, "of_lag": 1.5, "log_cap": 1.5, "log_sigma": 0.7}
# Mean and spread of each constant, in the order of NAMES: `prior` of the record of the law study.
_SMALL_MODELS = (
    (4.60, 1.76, 0.10, 0.94, -0.93),
    (0.25, 0.17, 0.42, 0.17, 0.25),
)
# The time and the cap belong to a unit of the learning rate, which differs between optimizers.
SCALES = ("log_time", "log_cap")


@dataclasses.dataclass(frozen=True)
class Prior:
    """Holds a normal prior of each constant, in the order of `collapse_law.NAMES`."""

    mean: np.ndarray  # [5]
    spread: np.ndarray  # [5], standard deviations

    def without_scale(self) -> "Prior":
        """Returns the prior for a setting whose unit of the learning rate is another one."""
        mean, spread = self.mean.copy(), self.spread.copy()
        for i, name in enumerate(NAMES):
            if name in SCALES:
                mean[i], spread[i] = _VAGUE_MEAN[name], _VAGUE_SPREAD[name]
        return Prior(mean, spread)

    def at_momentum(self, b1: float) -> "Prior":
        """Returns the prior of S0 for a momentum, from that of S0 (1 - b1)."""
        mean = self.mean.copy()
        mean[NAMES.index("of_lag")] -= np.log1p(-b1)
        return Prior(mean, self.spread)


def vague(law: str = "saturating") -> Prior:
    """Returns a prior that says little, for one of `collapse_law.LAWS`."""
    mean = np.array([_VAGUE_MEAN[name] for name in NAMES])
    spread = np.array([_VAGUE_SPREAD[name] for name in NAMES])
    of_lag, b = NAMES.index("of_lag"), NAMES.index("b")
    if law == "power":
        mean[of_lag], spread[of_lag] = 0.5, 0.5
    if law in ("horizon", "paper"):  # b is 1, and not fitted
        mean[b], spread[b] = 1.0, 1e-6
    return Prior(mean, spread)


def of_small_models() -> Prior:
    """Returns the prior from the calibration settings of `experiments.law` (`prior`).

    eta_ref is the middle of their grid. S0 is in multiples of 1 / (1 - b1); see `at_momentum`.
    """
    mean, spread = _SMALL_MODELS
    return Prior(np.array(mean), np.array(spread))


def population(fits: Sequence[tuple[Posterior, float]]) -> Prior:
    """Returns the prior of a new setting from several settings: their mean and their scatter.

    Args:
      fits: the posterior of each setting, all with the same eta_ref, and its momentum b1.
    """
    shift = np.zeros((len(fits), len(NAMES)))
    shift[:, NAMES.index("of_lag")] = [np.log1p(-b1) for _, b1 in fits]
    draws = np.stack([fit.constants for fit, _ in fits]) + shift[:, None]
    means = draws.mean(axis=1)
    # The scatter of the settings holds the uncertainty of each already. With few settings it can
    # come out smaller than that.
    spread = np.maximum(means.std(axis=0, ddof=1), np.sqrt(draws.var(axis=1).mean(axis=0)))
    return Prior(means.mean(axis=0), spread)


@dataclasses.dataclass(frozen=True)
class Sign:
    """Holds what an early sign says of one run: its collapse time, with an uncertainty."""

    max_lag: float  # S, above 0
    learning_rate: float  # eta
    log_time: float  # expected log of the collapse time
    sigma: float  # standard deviation of the log


def fit(
    runs: Runs,
    rate: float,
    prior: Prior,
    law: str = "saturating",
    signs: Sequence[Sign] = (),
) -> Posterior:
    """Returns the posterior of a law's constants.

    Args:
      runs: what was seen.
      rate: eta_ref.
      prior: of the constants at eta_ref.
      law: a key of `collapse_law.LAWS`.
      signs: what early signs say of the median collapse time at their S and eta.
    """
    of_runs = _likelihood(runs, rate, law)

    def likelihood(constants: np.ndarray) -> np.ndarray:
        total = of_runs(constants)
        for sign in signs:
            log_rate = np.log(sign.learning_rate / rate)
            expected = log_median(law, constants, np.asarray(sign.max_lag), log_rate)
            total = total - 0.5 * np.square((expected - sign.log_time) / sign.sigma)
        return total

    return posterior(likelihood, prior.mean, prior.spread)


def best_fit(runs: Runs, rate: float, prior: Prior, law: str = "saturating") -> np.ndarray:
    """Returns the most probable constants [5]; arguments as in `fit`."""
    return largest(_likelihood(runs, rate, law), prior.mean, prior.spread)


def _likelihood(runs: Runs, rate: float, law: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda constants: log_likelihood(law, constants, runs, rate).sum(axis=-1)
