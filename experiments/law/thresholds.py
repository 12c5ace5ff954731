"""Judges thresholds in a quantity of the tokens beside the laws of S and eta, on the same runs.

A threshold says that a run collapses sooner, the larger a quantity m of its first learner steps:

    log t_c = a - s log m + sigma * normal

In its form `own`, m is that of the run itself. In its form `by_lag`, m is predicted from S and eta
by a power law, which is measured in the first steps of stable runs. So the relation of S and eta is
not fitted to collapses. Every law and threshold is judged by the likelihood of the half of the
seeds that it was not fitted to.
"""

from typing import Any

import numpy as np
from scipy.special import log_ndtr

from experiments.law.settings import Setting
from experiments.sweep.laws import seed_halves
from staleness_grpo.scaling import collapse_law
from staleness_grpo.scaling.alarms import before_collapse
from staleness_grpo.scaling.censored import fit_censored_power_law
from staleness_grpo.scaling.collapse_law import Runs
from staleness_grpo.scaling.early_sign import FIRST_STEP, LAST_STEP
from staleness_grpo.scaling.prior import best_fit, vague

# Name -> the trace, and m as a function of its value.
QUANTITIES = {
    "log_ratio": ("log_ratio_second_moment", lambda value: value),
    "lost_sample_size": ("ess", lambda value: 1 - value),  # 1 - ESS / n
    "clip_fraction": ("clip_fraction", lambda value: value),
}
FORMS = OWN, BY_LAG = "own", "by_lag"
LAWS = ("saturating", "power", "paper")
SMALLEST = 1e-6  # a run without clipped tokens has a clip fraction of 0
FEWEST_STABLE = 6  # runs that a power law of S and eta is measured in


def judge(settings: dict[str, Setting], rates: dict[str, float]) -> dict[str, Any]:
    """Returns the held-out log-likelihood of collapse times under each law and threshold.

    Runs without lag, and those that collapse before learner step FIRST_STEP has a value, are left
    out for all.

    Args:
      settings: the records of all maps, by name.
      rates: eta_ref of each.

    Returns:
      `by_setting`: by setting, and by law or `QUANTITY_FORM`. A setting is left out if a half of
        its seeds has too few collapses or stable runs, or if its records lack a trace.
      `sum`: the sums over these settings.
      `num_runs`: the number of judged runs.
    """
    by_setting, num_runs = {}, 0
    for name, setting in settings.items():
        found = _judged(setting, rates[name])
        if found is not None:
            by_setting[name], count = found
            num_runs += count
    names = next(iter(by_setting.values()), {})
    return {
        "by_setting": by_setting,
        "sum": {name: sum(of[name] for of in by_setting.values()) for name in names},
        "num_settings": len(by_setting),
        "num_runs": num_runs,
    }


def _judged(setting: Setting, rate: float) -> tuple[dict[str, float], int] | None:
    """Returns the log-likelihoods of one setting and its number of runs; None if left out."""
    traces = {trace for trace, _ in QUANTITIES.values()}
    if not all(traces <= record["traces"].keys() for record in setting.records):
        return None
    values = np.array([early(record) for record in setting.records])
    kept = np.isfinite(values).all(axis=1) & (setting.runs.max_lag > 0)
    runs, values = setting.runs[kept], values[kept]
    half = seed_halves(runs.seed)
    totals: dict[str, float] = {}
    for part in (0, 1):
        scores = held_out(runs, np.log(values), half != part, rate)
        if scores is None:
            return None
        totals = {name: totals.get(name, 0.0) + score for name, score in scores.items()}
    return totals, len(runs)


def held_out(
    runs: Runs, log_values: np.ndarray, fitted: np.ndarray, rate: float
) -> dict[str, float] | None:
    """Returns the log-likelihood, under each law and threshold, of the runs it is not fitted to.

    Args:
      runs: n runs with lag.
      log_values: [n, quantities], the log of each quantity in the first steps of each run.
      fitted: [n] bool, the runs to fit to.
      rate: eta_ref.

    Returns:
      The sums over the other runs; None if there are too few runs of a kind.
    """
    known, left = runs[fitted], ~fitted
    if known.collapsed.sum() < 3 or (~known.collapsed).sum() < FEWEST_STABLE or not left.any():
        return None
    scores = {}
    for law in LAWS:
        constants = best_fit(known, rate, vague(law), law)
        each = collapse_law.log_likelihood(law, constants, runs[left], rate)
        scores[law] = float(each.sum())
    for own, name in zip(log_values.T, QUANTITIES, strict=True):
        forms = {OWN: own, BY_LAG: _by_lag(runs, own, fitted & ~runs.collapsed)}
        for form, log_m in forms.items():
            scores[f"{name}_{form}"] = float(_threshold(runs, log_m, fitted)[left].sum())
    return scores


def early(record: dict) -> list[float]:
    """Returns each quantity of a run's learner steps FIRST_STEP to LAST_STEP; NaN without any."""
    found = []
    for trace, quantity in QUANTITIES.values():
        blocks = before_collapse(record, trace, LAST_STEP)[FIRST_STEP // record["trace_every"] :]
        blocks = blocks[np.isfinite(blocks)]
        mean = float(quantity(blocks.mean())) if blocks.size else np.nan
        found.append(max(mean, SMALLEST))
    return found


def _by_lag(runs: Runs, log_m: np.ndarray, stable: np.ndarray) -> np.ndarray:
    """Returns log m as a power law of S and eta predicts it, measured in the stable runs."""
    design = np.column_stack((np.ones(len(runs)), np.log(runs.max_lag), np.log(runs.learning_rate)))
    return design @ np.linalg.lstsq(design[stable], log_m[stable], rcond=None)[0]


def _threshold(runs: Runs, log_m: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Returns the log-likelihood of each run under a threshold that some runs are fitted by."""
    known = runs[fitted]
    fit = fit_censored_power_law(np.exp(log_m[fitted]), known.step, ~known.collapsed)
    median = fit.parameters[0] + fit.parameters[1] * log_m
    return log_likelihood(runs, median, fit.sigma)


def log_likelihood(runs: Runs, median: np.ndarray, sigma: float) -> np.ndarray:
    """Returns the log-likelihood of each run if log t_c is normal around `median`.

    A collapse that an evaluation finds happened since the evaluation before, as in
    `collapse_law.log_likelihood`.
    """
    after = log_ndtr((median - np.log(runs.step)) / sigma)
    before = log_ndtr((median - np.log(np.maximum(runs.step - runs.resolution, 0.5))) / sigma)
    collapsed = before + np.log(np.maximum(-np.expm1(np.minimum(after - before, 0.0)), 1e-10))
    return np.where(runs.collapsed, collapsed, after)
