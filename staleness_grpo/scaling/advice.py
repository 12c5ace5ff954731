"""Answers which learning rate is safe at which lag, from the posterior of the law of collapse.

Every number has an interval. Where the runs bound it from one side alone, so does the answer.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from staleness_grpo.scaling import collapse_law
from staleness_grpo.scaling.collapse_law import NAMES, Runs
from staleness_grpo.scaling.posterior import Posterior
from staleness_grpo.scaling.prior import Prior, Sign, fit

INTERVAL = 0.9  # share of the posterior in each interval
SAFE_RISK = 0.05  # of a collapse up to T, at a learning rate that is called safe
COSTS = 1.25  # a lag costs something where the synchronous eta_max is this many times as large
# An interval whose ends differ by a larger factor answers nothing.
WIDEST = 30.0
CAP, LAG = "cap", "lag and horizon"
LARGEST_LAG_POWER = 10  # lags up to 2 to this power are looked at


@dataclasses.dataclass(frozen=True)
class Range:
    """Holds a central value and an interval; an end that no run bounds is None."""

    value: float  # the median; of a risk the mean, which is the probability itself
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class AtLag:
    """Holds the answer for one lag."""

    max_lag: int  # S
    eta_max: Range  # learning rate with a risk of one half
    safe: Range  # learning rate with a risk of SAFE_RISK
    binds: str  # CAP or LAG: what the boundary comes from
    bind_share: float  # the probability of that


@dataclasses.dataclass(frozen=True)
class Advice:
    """Holds the answer to a question about one setting."""

    num_steps: int  # T
    by_lag: tuple[AtLag, ...]
    # The S from which a lag costs something; None if it is not known to a factor of WIDEST.
    cost_lag: Range | None
    risk: Range | None  # of a collapse at the setting that was asked about; None if none was
    at: tuple[float, float] | None  # (S, eta) of that setting
    num_runs: int
    num_collapsed: int
    refusal: str | None  # why there is no answer, and what is missing
    notes: tuple[str, ...]


def advise(
    runs: Runs,
    prior: Prior,
    rate: float,
    num_steps: int,
    lags: tuple[int, ...],
    at: tuple[float, float] | None = None,
    signs: Sequence[Sign] = (),
) -> Advice:
    """Answers a question about a setting from its runs.

    Args:
      runs: what is known of the setting.
      prior: of the constants at eta_ref.
      rate: eta_ref.
      num_steps: T, the horizon of the question.
      lags: the values of S that are asked about.
      at: S and eta of a run whose risk is asked for.
      signs: early signs of the runs. They are used only if the runs bound the answer from one
        side alone.

    Raises:
      ValueError: there are no runs.
    """
    if not len(runs):
        raise ValueError("there are no runs: give at least one")
    below, above = _bounded(runs)
    used = () if below and above else tuple(signs)
    below, above = below or bool(used), above or bool(used)
    fitted = fit(runs, rate, prior, signs=used)
    constants = fitted.constants
    asked = np.array(sorted(set(lags)), float)

    def ranged(values: np.ndarray) -> Range:
        median, low, high = fitted.interval(values, INTERVAL)
        return Range(median, low if below else None, high if above else None)

    boundary = collapse_law.eta_max("saturating", constants, asked, num_steps, rate)
    safe = collapse_law.eta_max("saturating", constants, asked, num_steps, rate, SAFE_RISK)
    cap = rate * np.exp(constants[:, NAMES.index("log_cap")])
    is_cap = boundary > cap[:, None] * np.exp(-collapse_law.CAP_WIDTH)
    by_lag = []
    for i, lag in enumerate(asked):
        share = float(is_cap[:, i].mean())
        by_lag.append(
            AtLag(
                max_lag=int(lag),
                eta_max=ranged(boundary[:, i]),
                safe=ranged(safe[:, i]),
                binds=CAP if share > 0.5 else LAG,
                bind_share=max(share, 1 - share),
            )
        )
    risk = None
    if at is not None:
        lag, learning_rate = at
        survives = collapse_law.log_survival(
            "saturating", constants, lag, np.log(learning_rate / rate), np.log(num_steps)
        )
        each = 1 - np.exp(survives)
        _, low_risk, high_risk = fitted.interval(each, INTERVAL)
        risk = Range(float(each.mean()), low_risk if above else 0.0, high_risk if below else 1.0)
    return Advice(
        num_steps=num_steps,
        by_lag=tuple(by_lag),
        cost_lag=_cost_lag(constants, num_steps, rate, fitted) if below and above else None,
        risk=risk,
        at=at,
        num_runs=len(runs),
        num_collapsed=int(runs.collapsed.sum()),
        refusal=_refusal(runs, by_lag),
        notes=_notes(runs, num_steps, bool(used)),
    )


def _bounded(runs: Runs) -> tuple[bool, bool]:
    """Says whether runs bound the safe learning rates from below, and from above."""
    return bool((~runs.collapsed).any()), bool(runs.collapsed.any())


def _cost_lag(
    constants: np.ndarray, num_steps: int, rate: float, fitted: Posterior
) -> Range | None:
    """Returns the smallest S at which eta_max is below the synchronous one divided by COSTS."""
    lags = np.append(0.0, 2.0 ** np.arange(0, LARGEST_LAG_POWER + 0.25, 0.25))
    boundary = collapse_law.eta_max("saturating", constants, lags, num_steps, rate)
    costs = boundary < boundary[:, :1] / COSTS
    first = np.where(costs.any(axis=1), costs.argmax(axis=1), len(lags) - 1)
    value, low, high = fitted.interval(lags[first], INTERVAL)
    return Range(value, low, high) if high <= WIDEST * low else None


def _refusal(runs: Runs, by_lag: list[AtLag]) -> str | None:
    """Returns why the runs carry no answer; None if they carry one."""
    stale = runs[runs.max_lag > 0]
    if not len(stale):
        return (
            "no run has a lag, so nothing is known of what a lag does: "
            "add a run with lag, or let the command probe"
        )
    widths = [
        answer.eta_max.high / answer.eta_max.low
        for answer in by_lag
        if answer.eta_max.high is not None and answer.eta_max.low is not None
    ]
    if widths and min(widths) > WIDEST:
        return (
            f"the interval of eta_max is wider than a factor of {WIDEST:g} at every lag: "
            "add runs with another learning rate or lag, best a stable one and a collapsing one"
        )
    return None


def _notes(runs: Runs, num_steps: int, has_signs: bool) -> tuple[str, ...]:
    """Returns sentences about what the answer rests on, and what widens it."""
    found = []
    stale = runs[runs.max_lag > 0]
    below, above = _bounded(runs)
    if has_signs:
        found.append(
            "The mean of (log ratio)^2 early in the runs is used as a sign of their collapse times."
        )
    if not above:
        found.append(
            "No run collapsed: the upper ends come from that sign alone."
            if has_signs
            else "No run collapsed, so eta_max is bounded from below alone."
        )
    if not below:
        found.append(
            "Every run collapsed: the lower ends come from that sign alone."
            if has_signs
            else "Every run collapsed, so eta_max is bounded from above alone."
        )
    if len(np.unique(stale.max_lag)) < 2:
        found.append("The runs have one lag, so how eta_max depends on S is that of small models.")
    if len(np.unique(runs.learning_rate)) < 2:
        found.append(
            "The runs have one learning rate, so how collapse times depend on it is that of small "
            "models."
        )
    if len(runs) and num_steps > 3 * runs.step.max():
        found.append(
            f"The longest run has {runs.step.max():.0f} learner steps, so T = {num_steps} is an "
            "extrapolation."
        )
    if not (runs.max_lag == 0).any():
        found.append("No run is synchronous, so the cap at lag 0 is not measured.")
    return tuple(found)
