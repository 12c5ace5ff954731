"""Fits the boundary between stable and collapsing cells: eta_max by lag and horizon.

S is the maximum lag, T the horizon in learner steps, and eta the learning rate.

The paper's rule takes the smaller of a staleness bound R_batch / (S G_upd) and a horizon bound
R_crit / (T G_upd) (arXiv 2607.01083). Here the two bounds are A / S and B / T with A and B free,
and they are combined in several ways. The likelihood of seeds that were not fitted says which one
holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from staleness_grpo.scaling.censored import Fit, fit_threshold, probit_log_likelihood


@dataclasses.dataclass(frozen=True)
class Cells:
    """Holds n cells, each of them a run up to a horizon; every field is an array [n]."""

    # S. The rules are fitted where S >= 1. At S = 0 their staleness bound is infinite.
    max_lag: np.ndarray
    learning_rate: np.ndarray  # eta
    horizon: np.ndarray  # T, learner steps
    collapsed: np.ndarray  # bool, by step T
    seed: np.ndarray

    def __getitem__(self, rows: Any) -> "Cells":
        return Cells(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.seed)


def at_horizons(records: list[dict], horizons: tuple[int, ...]) -> Cells:
    """Makes one cell of every record and horizon; a collapse after the horizon does not count.

    Args:
      records: lines of a sweep's cells.jsonl.
      horizons: learner steps.

    Raises:
      ValueError: for a run that is shorter than a horizon.
    """
    rows = [
        (
            record["max_lag"],
            record["learning_rate"],
            horizon,
            record["collapse_step"] is not None and record["collapse_step"] < horizon,
            record["seed"],
        )
        for record in records
        for horizon in horizons
    ]
    shortest = min(record["steps"] for record in records)
    if max(horizons) > shortest:
        raise ValueError(
            f"a horizon of {max(horizons)} is longer than the shortest run, {shortest} steps: give "
            f"horizons of at most {shortest}"
        )
    lags, rates, steps, collapsed, seeds = (np.array(column) for column in zip(*rows, strict=True))
    return Cells(lags.astype(float), rates, steps.astype(float), collapsed.astype(bool), seeds)


def _log_lag(cells: Cells) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(cells.max_lag)


def _staleness(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log(A / S)."""
    return parameters[0] - _log_lag(cells)


def _horizon(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log(B / T), for a rule that has A before B."""
    return parameters[1] - np.log(cells.horizon)


def _horizon_alone(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log(B / T), for the rule that has B alone."""
    return parameters[0] - np.log(cells.horizon)


def _min(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    return np.minimum(_staleness(parameters, cells), _horizon(parameters, cells))


def _max(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    return np.maximum(_staleness(parameters, cells), _horizon(parameters, cells))


def _smooth(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log of ((A/S)^p + (B/T)^p)^(1/p).

    It tends to the smaller bound for p -> -inf and to the larger for p -> inf.
    """
    power = parameters[2] if abs(parameters[2]) > 1e-3 else 1e-3
    both = np.logaddexp(power * _staleness(parameters, cells), power * _horizon(parameters, cells))
    return both / power


def _product(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log of a power law in S and T with free exponents."""
    return parameters[0] - parameters[1] * _log_lag(cells) - parameters[2] * np.log(cells.horizon)


# Each rule maps its parameters to log eta_max of the cells [n]. log A and log B come first where a
# rule has them.
RULES: dict[str, Callable[[np.ndarray, Cells], np.ndarray]] = {
    "staleness": _staleness,
    "horizon": _horizon_alone,
    "min": _min,
    "max": _max,
    "smooth": _smooth,
    "product": _product,
}
LARGEST_SLOPE = 10.0  # of |d log eta_max / d log S|, far beyond any law
# Starts around S eta = 0.01 and T eta = 0.3. The values of each differ by a factor of 10 or more.
_STARTS_LOG_A, _STARTS_LOG_B = np.log([2e-3, 8e-3, 3e-2]), np.log([0.1, 0.3, 1.0])
_STARTS_PRODUCT = ((np.log(0.1), 0.5, 0.5), (np.log(0.3), 0.1, 0.9), (np.log(0.01), 0.9, 0.1))


def _starts(rule: str) -> np.ndarray:
    """Returns parameters [number of starts, number of parameters] from which a rule is fitted."""
    if rule == "staleness":
        return _STARTS_LOG_A[:, None]
    if rule == "horizon":
        return _STARTS_LOG_B[:, None]
    if rule == "product":
        return np.array(_STARTS_PRODUCT)
    pairs = [[log_a, log_b] for log_a in _STARTS_LOG_A for log_b in _STARTS_LOG_B]
    if rule == "smooth":
        return np.array([[*pair, power] for pair in pairs[::4] for power in (-2.0, 2.0)])
    return np.array(pairs)


def fit_rule(rule: str, cells: Cells) -> Fit:
    """Fits a rule's parameters and the boundary's width in log eta by maximum likelihood."""
    return fit_threshold(
        np.log(cells.learning_rate),
        cells.collapsed,
        lambda parameters: RULES[rule](parameters, cells),
        _starts(rule),
    )


def log_eta_max(rule: str, parameters: ArrayLike, max_lag: ArrayLike, horizon: float) -> np.ndarray:
    """Returns the boundary of a rule [n] at each S [n] and one T."""
    lags = np.asarray(max_lag, float)
    empty = np.zeros(len(lags))
    return RULES[rule](
        np.asarray(parameters),
        Cells(lags, empty, empty + horizon, empty, empty),
    )


def log_likelihood(rule: str, fit: Fit, cells: Cells) -> float:
    """Returns the log-likelihood of `cells` under `fit`, which may come from other cells."""
    threshold = RULES[rule](fit.parameters, cells)
    return float(
        np.sum(
            probit_log_likelihood(
                np.log(cells.learning_rate), threshold, fit.sigma, cells.collapsed
            )
        )
    )


def balanced_accuracy(rule: str, fit: Fit, cells: Cells) -> float:
    """Averages the shares of collapsing and of stable cells on the right side of the boundary.

    Raises:
      ValueError: if all cells collapsed, or none did.
    """
    if not _both_outcomes(cells):
        raise ValueError("balanced accuracy needs stable and collapsing cells: give some of both")
    above = np.log(cells.learning_rate) > RULES[rule](fit.parameters, cells)
    return float((above[cells.collapsed].mean() + (~above)[~cells.collapsed].mean()) / 2)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Says how well a rule describes cells that it was not fitted to."""

    log_likelihood: float  # of the cells with S >= 1, summed over the folds and horizons
    # Mean over the folds. Each run counts once, as stable or collapsing by the longest horizon.
    balanced_accuracy: float
    balanced_accuracy_stale: float  # the same without the cells of S = 0, which are the easy ones


def cross_validate(rule: str, cells: Cells, fold: np.ndarray) -> HeldOut:
    """Judges a rule on each fold by a fit to all other folds.

    Only cells with S >= 1 are fitted.

    Args:
      rule: a key of RULES.
      cells: n cells.
      fold: [n], the label of each cell's fold.

    Raises:
      ValueError: if the cells of a fold at the longest horizon all collapsed, or none did.
    """
    stale, last = cells.max_lag >= 1, cells.horizon == cells.horizon.max()
    likelihoods, accuracies, accuracies_stale = [], [], []
    for label in np.unique(fold):
        fit = fit_rule(rule, cells[(fold != label) & stale])
        likelihoods.append(log_likelihood(rule, fit, cells[(fold == label) & stale]))
        accuracies.append(balanced_accuracy(rule, fit, cells[(fold == label) & last]))
        accuracies_stale.append(balanced_accuracy(rule, fit, cells[(fold == label) & last & stale]))
    return HeldOut(
        float(np.sum(likelihoods)), float(np.mean(accuracies)), float(np.mean(accuracies_stale))
    )


def measured_log_eta_max(cells: Cells) -> dict[float, float]:
    """Measures log eta_max of each S from its own cells at one horizon.

    It is the probit threshold, with one width for all S. An S at which no cell collapsed gets +inf,
    and one at which all did gets -inf: its threshold is outside the grid.
    """
    lags = np.unique(cells.max_lag)
    mixed = [lag for lag in lags if 0 < cells.collapsed[cells.max_lag == lag].mean() < 1]
    measured = {
        float(lag): -np.inf if cells.collapsed[cells.max_lag == lag].all() else np.inf
        for lag in lags
    }
    if mixed:
        inner = cells[np.isin(cells.max_lag, mixed)]
        index = np.searchsorted(mixed, inner.max_lag)
        log_rate = np.log(inner.learning_rate)
        # The search starts at the largest stable learning rate of each S.
        start = np.array(
            [[log_rate[index == i][~inner.collapsed[index == i]].max() for i in range(len(mixed))]]
        )
        fit = fit_threshold(log_rate, inner.collapsed, lambda parameters: parameters[index], start)
        measured |= {
            float(lag): float(value) for lag, value in zip(mixed, fit.parameters, strict=True)
        }
    return measured


def slope_of_eta_max(cells: Cells) -> float:
    """Fits d log eta_max / d log S over these cells by probit; an S outside the grid counts.

    The slope is NaN if the cells do not have both outcomes and two values of S. It is also NaN if
    the likelihood grows without bound in the slope, as a slope beyond LARGEST_SLOPE shows. This
    happens when the few seeds of a resample do not order the cells by learning rate.
    """
    if not _both_outcomes(cells) or len(np.unique(cells.max_lag)) < 2:
        return np.nan
    log_lag = np.log(cells.max_lag)
    middle = np.log(cells.learning_rate).mean()
    # One start is enough, because the likelihood has one maximum.
    starts = np.array([[middle + 0.5 * log_lag.mean(), -0.5]])
    fit = fit_threshold(
        np.log(cells.learning_rate),
        cells.collapsed,
        lambda parameters: parameters[0] + parameters[1] * log_lag,
        starts,
    )
    slope = float(fit.parameters[1])
    return slope if abs(slope) < LARGEST_SLOPE else np.nan


def _both_outcomes(cells: Cells) -> bool:
    return bool(cells.collapsed.any() and not cells.collapsed.all())
