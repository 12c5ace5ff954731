"""Fits the largest stable learning rate eta_max as a function of lag and horizon.

S is the maximum lag, T the horizon in learner steps, and eta the learning rate. eta_max is the
boundary between stable and collapsing cells.

The rule of arXiv 2607.01083 is the smaller of a staleness bound R_batch / (S G_upd) and a horizon
bound R_crit / (T G_upd). Here the bounds are A / S and B / T with free A and B. Several rules
combine them. The rules are compared by the likelihood of seeds that were not used in the fit.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from staleness_grpo.scaling.censored import Fit, fit_threshold, probit_log_likelihood


@dataclasses.dataclass(frozen=True)
class Cells:
    """Holds n cells. A cell is a run up to a horizon. Every field is an array [n]."""

    # S. The rules are fitted to cells with S >= 1. At S = 0 the staleness bound A / S is infinite.
    max_lag: np.ndarray
    learning_rate: np.ndarray  # eta
    horizon: np.ndarray  # T, learner steps
    collapsed: np.ndarray  # bool, whether the run collapsed before step T
    seed: np.ndarray

    def __getitem__(self, rows: Any) -> "Cells":
        return Cells(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.seed)


def at_horizons(records: list[dict], horizons: tuple[int, ...]) -> Cells:
    """Makes one cell for each record and horizon.

    A cell whose run collapses at or after the horizon is stable.

    Args:
      records: lines of a sweep's cells.jsonl.
      horizons: horizons in learner steps.

    Raises:
      ValueError: a run is shorter than a horizon.
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
    """Returns log(B / T) for a rule with the parameters (log A, log B, ...)."""
    return parameters[1] - np.log(cells.horizon)


def _horizon_alone(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log(B / T) for the rule with the one parameter log B."""
    return parameters[0] - np.log(cells.horizon)


def _min(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    return np.minimum(_staleness(parameters, cells), _horizon(parameters, cells))


def _max(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    return np.maximum(_staleness(parameters, cells), _horizon(parameters, cells))


def _smooth(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns the logarithm of ((A/S)^p + (B/T)^p)^(1/p).

    The value tends to the smaller bound for p -> -inf, and to the larger bound for p -> inf.
    """
    power = parameters[2] if abs(parameters[2]) > 1e-3 else 1e-3
    log_sum = np.logaddexp(
        power * _staleness(parameters, cells), power * _horizon(parameters, cells)
    )
    return log_sum / power


def _product(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns the logarithm of a power law in S and T with free exponents."""
    return parameters[0] - parameters[1] * _log_lag(cells) - parameters[2] * np.log(cells.horizon)


def _saturating(parameters: np.ndarray, cells: Cells) -> np.ndarray:
    """Returns log eta_max where a collapse comes after t_1 eta^-b (1 + S0 / S) learner steps.

    A cell is stable up to T if its collapse comes later, so eta_max^b = t_1 (1 + S0 / S) / T. Below
    S0 the boundary falls with the lag, and far above S0 it no longer does. The parameters are
    log t_1, log S0 and log b. This is a hypothesis of this project, and not of the paper.
    """
    log_first, log_s0, log_b = parameters
    log_lag_factor = np.logaddexp(0.0, log_s0 - _log_lag(cells))
    return (log_first + log_lag_factor - np.log(cells.horizon)) * np.exp(-log_b)


# Each rule is a function from (parameters, cells) to log eta_max [n]. The first parameters are log
# A and log B, if the rule has them.
RULES: dict[str, Callable[[np.ndarray, Cells], np.ndarray]] = {
    "staleness": _staleness,
    "horizon": _horizon_alone,
    "min": _min,
    "max": _max,
    "smooth": _smooth,
    "product": _product,
    "saturating": _saturating,
}
LARGEST_SLOPE = 10.0  # largest |d log eta_max / d log S| that counts as a fit; no law is so steep
# Parameters at which fits start, around S eta = 0.01 and T eta = 0.3. The smallest and the largest
# value differ by a factor of 10 or more. They are for learning rates around START_RATE; for other
# grids they are moved.
START_RATE = 1.2e-3
_STARTS_LOG_A, _STARTS_LOG_B = np.log([2e-3, 8e-3, 3e-2]), np.log([0.1, 0.3, 1.0])
_STARTS_PRODUCT = ((np.log(0.1), 0.5, 0.5), (np.log(0.3), 0.1, 0.9), (np.log(0.01), 0.9, 0.1))


def _starts(rule: str, cells: Cells) -> np.ndarray:
    """Returns the start parameters of a rule's fit, [number of starts, number of parameters]."""
    moved = np.median(np.log(cells.learning_rate)) - np.log(START_RATE)
    log_as, log_bs = _STARTS_LOG_A + moved, _STARTS_LOG_B + moved
    if rule == "staleness":
        return log_as[:, None]
    if rule == "horizon":
        return log_bs[:, None]
    if rule == "product":
        return np.array(_STARTS_PRODUCT) + np.array([moved, 0.0, 0.0])
    if rule == "saturating":
        # At S = S0 the collapse comes after 2 t_1 eta^-b, which is the horizon at a middle rate.
        middle = np.median(np.log(cells.learning_rate))
        log_horizon = np.median(np.log(cells.horizon))
        return np.array(
            [
                [log_horizon + b * middle - np.log(2.0), np.log(s0), np.log(b)]
                for b in (1.0, 2.0)
                for s0 in (3.0, 30.0)
            ]
        )
    pairs = [[log_a, log_b] for log_a in log_as for log_b in log_bs]
    if rule == "smooth":
        return np.array([[*pair, power] for pair in pairs[::4] for power in (-2.0, 2.0)])
    return np.array(pairs)


def fit_rule(rule: str, cells: Cells) -> Fit:
    """Fits, by maximum likelihood, a rule's parameters and the boundary's width in log eta."""
    return fit_threshold(
        np.log(cells.learning_rate),
        cells.collapsed,
        lambda parameters: RULES[rule](parameters, cells),
        _starts(rule, cells),
    )


def log_eta_max(rule: str, parameters: ArrayLike, max_lag: ArrayLike, horizon: float) -> np.ndarray:
    """Returns a rule's log eta_max [n] at each S [n] and one T."""
    lags = np.asarray(max_lag, float)
    unused = np.zeros(len(lags))
    return RULES[rule](
        np.asarray(parameters),
        Cells(lags, unused, unused + horizon, unused, unused),
    )


def log_likelihood(rule: str, fit: Fit, cells: Cells) -> float:
    """Returns the log-likelihood of `cells` under a fit, which may be a fit to other cells."""
    threshold = RULES[rule](fit.parameters, cells)
    return float(
        np.sum(
            probit_log_likelihood(
                np.log(cells.learning_rate), threshold, fit.sigma, cells.collapsed
            )
        )
    )


def balanced_accuracy(rule: str, fit: Fit, cells: Cells) -> float:
    """Returns the balanced accuracy of a rule's boundary.

    A cell is predicted to collapse if its learning rate is above the boundary. The result is the
    mean of two shares: the correctly predicted share of the collapsing cells, and that share of the
    stable cells.

    Raises:
      ValueError: all cells collapsed, or none did.
    """
    if not _both_outcomes(cells):
        raise ValueError("the cells are all stable or all collapsing: give cells of both kinds")
    above = np.log(cells.learning_rate) > RULES[rule](fit.parameters, cells)
    return float((above[cells.collapsed].mean() + (~above)[~cells.collapsed].mean()) / 2)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Says how well a rule predicts cells that it was not fitted to."""

    log_likelihood: float  # of cells with S >= 1, summed over folds and horizons
    # Mean over the folds, computed from the cells of the longest horizon only. So each run is used
    # once.
    balanced_accuracy: float
    # The same mean without the cells with S = 0, which are the easiest to predict.
    balanced_accuracy_stale: float


def cross_validate(rule: str, cells: Cells, fold: np.ndarray) -> HeldOut:
    """Tests a rule on each fold, after a fit to all other folds.

    A fit uses only cells with S >= 1.

    Args:
      rule: a key of RULES.
      cells: n cells.
      fold: [n], the label of each cell's fold.

    Raises:
      ValueError: in some fold, all cells of the longest horizon collapsed, or none did.
    """
    is_stale, is_last_horizon = cells.max_lag >= 1, cells.horizon == cells.horizon.max()
    likelihoods, accuracies, accuracies_stale = [], [], []
    for label in np.unique(fold):
        fit = fit_rule(rule, cells[(fold != label) & is_stale])
        likelihoods.append(log_likelihood(rule, fit, cells[(fold == label) & is_stale]))
        accuracies.append(balanced_accuracy(rule, fit, cells[(fold == label) & is_last_horizon]))
        accuracies_stale.append(
            balanced_accuracy(rule, fit, cells[(fold == label) & is_last_horizon & is_stale])
        )
    return HeldOut(
        float(np.sum(likelihoods)), float(np.mean(accuracies)), float(np.mean(accuracies_stale))
    )


def measured_log_eta_max(cells: Cells) -> dict[float, float]:
    """Measures log eta_max separately for each S, from cells at one horizon.

    log eta_max is the threshold of a probit fit, with one width for all S. If no cell of an S
    collapsed, its threshold is above the grid, and the value is +inf. If all cells of an S
    collapsed, its threshold is below the grid, and the value is -inf.
    """
    lags = np.unique(cells.max_lag)
    mixed = [lag for lag in lags if 0 < cells.collapsed[cells.max_lag == lag].mean() < 1]
    measured = {
        float(lag): -np.inf if cells.collapsed[cells.max_lag == lag].all() else np.inf
        for lag in lags
    }
    if mixed:
        mixed_cells = cells[np.isin(cells.max_lag, mixed)]
        index = np.searchsorted(mixed, mixed_cells.max_lag)
        log_rate = np.log(mixed_cells.learning_rate)
        # The search starts at the largest stable learning rate of each S.
        start = np.array(
            [
                [
                    log_rate[index == i][~mixed_cells.collapsed[index == i]].max()
                    for i in range(len(mixed))
                ]
            ]
        )
        fit = fit_threshold(
            log_rate, mixed_cells.collapsed, lambda parameters: parameters[index], start
        )
        measured |= {
            float(lag): float(value) for lag, value in zip(mixed, fit.parameters, strict=True)
        }
    return measured


def slope_of_eta_max(cells: Cells) -> float:
    """Fits the slope d log eta_max / d log S to these cells, with a probit model.

    An S whose threshold lies outside the grid is used too. The slope is NaN in two cases:
      the cells do not have both outcomes and at least two values of S;
      the fitted slope is beyond LARGEST_SLOPE, because the likelihood grows without bound in the
      slope. This happens in a resample with few seeds, if the learning rate does not separate
      collapsing from stable cells.
    """
    if not _both_outcomes(cells) or len(np.unique(cells.max_lag)) < 2:
        return np.nan
    log_lag = np.log(cells.max_lag)
    mean_log_rate = np.log(cells.learning_rate).mean()
    # One start is enough, because the likelihood has one maximum.
    starts = np.array([[mean_log_rate + 0.5 * log_lag.mean(), -0.5]])
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
