"""The boundary between stable and collapsing cells: eta_max as a function of max_lag S and horizon T.

The paper's rule takes the smaller of a staleness bound R_batch / (S G_upd) and a horizon bound R_crit / (T G_upd)
(arXiv 2607.01083). Here the two are combined in several ways, A / S and B / T with A and B free, and the data say
which: the likelihood of seeds that were not fitted.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from staleness_grpo.scaling.censored import Fit, fit_threshold, probit_log_likelihood


@dataclasses.dataclass(frozen=True)
class Cells:
    """n cells, each a run looked at up to a horizon."""

    max_lag: np.ndarray  # S; the rules are fitted where S >= 1, and at S = 0 their staleness bound is infinite
    learning_rate: np.ndarray
    horizon: np.ndarray  # T, learner steps
    collapsed: np.ndarray  # bool, by step T
    seed: np.ndarray

    def __getitem__(self, rows) -> "Cells":
        return Cells(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.seed)


def at_horizons(cells: list[dict], horizons: tuple[int, ...]) -> Cells:
    """Looks at every record up to each horizon. Raises ValueError for a run shorter than a horizon."""
    rows = [
        (r["max_lag"], r["learning_rate"], t, r["collapse_step"] is not None and r["collapse_step"] < t, r["seed"])
        for r in cells
        for t in horizons
    ]
    shortest = min(record["steps"] for record in cells)
    if max(horizons) > shortest:
        raise ValueError(f"a horizon of {max(horizons)} needs runs of that length, the shortest has {shortest}")
    lags, rates, steps, collapsed, seeds = (np.array(column) for column in zip(*rows, strict=True))
    return Cells(lags.astype(float), rates, steps.astype(float), collapsed.astype(bool), seeds)


def _log_lag(cells):
    with np.errstate(divide="ignore"):
        return np.log(cells.max_lag)


def _staleness(parameters, cells):
    return parameters[0] - _log_lag(cells)


def _horizon(parameters, cells):
    return parameters[1] - np.log(cells.horizon)


def _smooth(parameters, cells):
    """((A/S)^p + (B/T)^p)^(1/p): the smaller for p -> -inf, the larger for p -> inf."""
    power = parameters[2] if abs(parameters[2]) > 1e-3 else 1e-3
    both = np.logaddexp(power * _staleness(parameters, cells), power * _horizon(parameters, cells))
    return both / power


def _power(parameters, cells):
    return parameters[0] - parameters[1] * _log_lag(cells) - parameters[2] * np.log(cells.horizon)


# log eta_max of each rule from its parameters; log A and log B come first where a rule has them.
RULES: dict[str, Callable[[np.ndarray, Cells], np.ndarray]] = {
    "staleness": lambda parameters, cells: _staleness(parameters, cells),
    "horizon": lambda parameters, cells: parameters[0] - np.log(cells.horizon),
    "min": lambda parameters, cells: np.minimum(_staleness(parameters, cells), _horizon(parameters, cells)),
    "max": lambda parameters, cells: np.maximum(_staleness(parameters, cells), _horizon(parameters, cells)),
    "smooth": _smooth,
    "product": _power,
}
STEEPEST = 10.0  # |d log eta_max / d log S|
# Around S eta = 0.01 and T eta = 0.3, over a factor of 20.
_LOG_A, _LOG_B = np.log([2e-3, 8e-3, 3e-2]), np.log([0.1, 0.3, 1.0])


def _starts(rule: str) -> np.ndarray:
    if rule == "staleness":
        return _LOG_A[:, None]
    if rule == "horizon":
        return _LOG_B[:, None]
    if rule == "product":
        return np.array([[np.log(0.1), 0.5, 0.5], [np.log(0.3), 0.1, 0.9], [np.log(0.01), 0.9, 0.1]])
    pairs = [[a, b] for a in _LOG_A for b in _LOG_B]
    if rule == "smooth":
        return np.array([[*pair, power] for pair in pairs[::4] for power in (-2.0, 2.0)])
    return np.array(pairs)


def fit_rule(rule: str, cells: Cells) -> Fit:
    """Maximum likelihood of a rule's parameters and of the boundary's width in log eta."""
    return fit_threshold(
        np.log(cells.learning_rate), cells.collapsed, lambda parameters: RULES[rule](parameters, cells), _starts(rule)
    )


def log_eta_max(rule: str, parameters: np.ndarray, max_lag: np.ndarray, horizon: float) -> np.ndarray:
    """The boundary of a rule at each S >= 1 [n] and one T."""
    empty = np.zeros(len(max_lag))
    return RULES[rule](np.asarray(parameters), Cells(np.asarray(max_lag, float), empty, empty + horizon, empty, empty))


def log_likelihood(rule: str, fit: Fit, cells: Cells) -> float:
    """Of cells under a fit, which may have been made from others."""
    threshold = RULES[rule](fit.parameters, cells)
    return float(np.sum(probit_log_likelihood(np.log(cells.learning_rate), threshold, fit.sigma, cells.collapsed)))


def balanced_accuracy(rule: str, fit: Fit, cells: Cells) -> float:
    """Mean of the shares of collapsing and of stable cells that the boundary puts on the right side.

    Raises:
      ValueError: if all cells are of one kind.
    """
    if cells.collapsed.all() or not cells.collapsed.any():
        raise ValueError("balanced accuracy needs stable and collapsing cells")
    above = np.log(cells.learning_rate) > RULES[rule](fit.parameters, cells)
    return float((above[cells.collapsed].mean() + (~above)[~cells.collapsed].mean()) / 2)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """How a rule does on cells that it was not fitted to."""

    log_likelihood: float  # of the cells with S >= 1, summed over the folds and horizons
    balanced_accuracy: float  # mean over the folds, each run once: as stable or collapsing by the longest horizon
    balanced_accuracy_stale: float  # the same without the synchronous cells, which are the easy ones


def cross_validate(rule: str, cells: Cells, fold: np.ndarray) -> HeldOut:
    """Fits a rule to the cells with S >= 1 of all folds but one, for each fold [n], and judges it on that one."""
    stale, last = cells.max_lag >= 1, cells.horizon == cells.horizon.max()
    likelihoods, accuracies, accuracies_stale = [], [], []
    for label in np.unique(fold):
        fit = fit_rule(rule, cells[(fold != label) & stale])
        likelihoods.append(log_likelihood(rule, fit, cells[(fold == label) & stale]))
        accuracies.append(balanced_accuracy(rule, fit, cells[(fold == label) & last]))
        accuracies_stale.append(balanced_accuracy(rule, fit, cells[(fold == label) & last & stale]))
    return HeldOut(float(np.sum(likelihoods)), float(np.mean(accuracies)), float(np.mean(accuracies_stale)))


def measured_log_eta_max(cells: Cells) -> dict[float, float]:
    """log eta_max of each S from its own cells at one horizon: the probit threshold, with one width for all S.

    An S at which no cell collapsed gets +inf, one at which all did -inf: its threshold is outside the grid.
    """
    lags = np.unique(cells.max_lag)
    mixed = [lag for lag in lags if 0 < cells.collapsed[cells.max_lag == lag].mean() < 1]
    found = {float(lag): -np.inf if cells.collapsed[cells.max_lag == lag].all() else np.inf for lag in lags}
    if mixed:
        inner = cells[np.isin(cells.max_lag, mixed)]
        index = np.searchsorted(mixed, inner.max_lag)
        log_rate = np.log(inner.learning_rate)
        start = np.array([[log_rate[index == i][~inner.collapsed[index == i]].max() for i in range(len(mixed))]])
        fit = fit_threshold(log_rate, inner.collapsed, lambda parameters: parameters[index], start)
        found |= {float(lag): float(value) for lag, value in zip(mixed, fit.parameters, strict=True)}
    return found


def slope_of_eta_max(cells: Cells) -> float:
    """d log eta_max / d log S over these cells, by probit; censored S count.

    NaN if all cells are of one kind, or if the likelihood grows without bound in the slope (STEEPEST is far beyond
    any law), which happens when the few seeds of a resample do not order the cells by learning rate.
    """
    if cells.collapsed.all() or not cells.collapsed.any() or len(np.unique(cells.max_lag)) < 2:
        return np.nan
    log_lag = np.log(cells.max_lag)
    middle = np.log(cells.learning_rate).mean()
    starts = np.array([[middle + 0.5 * log_lag.mean(), -0.5]])  # one is enough: the likelihood has one maximum
    fit = fit_threshold(np.log(cells.learning_rate), cells.collapsed, lambda p: p[0] + p[1] * log_lag, starts)
    slope = float(fit.parameters[1])
    return slope if abs(slope) < STEEPEST else np.nan
