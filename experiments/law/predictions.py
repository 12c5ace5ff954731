"""Predicts the boundary of settings that the constants were not fitted to, and judges it."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.law.settings import STORIES, Setting, middle_rate
from staleness_grpo.scaling import collapse_law, stability
from staleness_grpo.scaling.prior import Prior, fit
from staleness_grpo.scaling.probe import probe

SATURATING = "saturating"
PREDICTIONS = ("transfer", "probe", "synchronous", "inverse_lag")
INTERVAL = 0.9  # share of the predictions' intervals
TYPICAL, LARGEST = 1.5, 3.0  # aims for the median and the largest factor


def heldout(
    settings: dict[str, Setting], law: ConfigDict, prior: Prior, rate: float
) -> dict[str, Any]:
    """Returns predicted and measured eta_max of the held-out settings.

    Args:
      settings: the records of all maps, by name.
      law: the section `law` of the config.
      prior: of the constants at eta_ref = `rate`, from the calibration.
      rate: eta_ref of the calibration.

    Returns:
      `rows`: one for each setting and S >= 1, with what each of PREDICTIONS says.
      `factors`: for each prediction, statistics of the factor between predicted and measured.
      `probe_steps`: learner steps of each setting's probe.
      `covered`: the share of the measured values within the interval, for `transfer` and `probe`.
    """
    names = [*law.heldout, *(name for name in settings if name == STORIES)]
    rows: list[dict[str, Any]] = []
    cost = {}
    for name in names:
        setting = settings[name]
        runs = probe_runs(setting, tuple(law.probe_lags), law.probe_steps)
        cost[name] = int(runs.step.sum())
        rows += _rows(name, setting, runs, prior.at_momentum(setting.b1), rate)
    counted = [row for row in rows if row["measured"] is not None]
    return {
        "rows": rows,
        "factors": {
            name: factors([r[name] / r["measured"] for r in counted]) for name in PREDICTIONS
        },
        "covered": {name: _covered(counted, name) for name in ("transfer", "probe")},
        "probe_steps": cost,
        "num_settings": len(names),
        "num_counted": len(counted),
    }


def _covered(rows: list[dict[str, Any]], name: str) -> float | None:
    """Returns the share of measured values inside the interval of a prediction."""
    inside = [row[f"{name}_low"] <= row["measured"] <= row[f"{name}_high"] for row in rows]
    return float(np.mean(inside)) if inside else None


def _rows(
    name: str, setting: Setting, runs: collapse_law.Runs, prior: Prior, rate: float
) -> list[dict[str, Any]]:
    """Returns the rows of one setting."""
    records = setting.records
    steps = max(r["steps"] for r in records)
    first = min(r["seed"] for r in records)
    others = [r for r in records if r["seed"] != first]
    # With a mean age of 0, as under cyclic lag with S = 1, the law has no lag.
    lags = sorted({r["max_lag"] for r in records if setting.age(r["max_lag"]) > 0})
    ages = setting.age(np.array(lags, float))
    measured = stability.measured_log_eta_max(stability.at_horizons(others, (steps,)))
    # The probe brings its own unit of the learning rate, so nothing of it is carried over.
    own_rate = middle_rate(records)
    fitted = {
        "transfer": (_draws(prior), rate),
        "probe": (fit(runs, own_rate, prior.without_scale()).constants, own_rate),
    }
    synchronous = measured[0.0]
    if not np.isfinite(synchronous):  # beyond the grid: its end
        ends = sorted({r["learning_rate"] for r in records})
        synchronous = np.log(ends[-1] if synchronous > 0 else ends[0])
    found = []
    for i, lag in enumerate(lags):
        value = measured[float(lag)]
        row: dict[str, Any] = {
            "setting": name,
            "max_lag": lag,
            "steps": steps,
            "measured": float(np.exp(value)) if np.isfinite(value) else None,
            "synchronous": float(np.exp(synchronous)),
            "inverse_lag": float(np.exp(synchronous) / lag),
        }
        for kind, (constants, unit) in fitted.items():
            drawn = collapse_law.eta_max(SATURATING, constants, ages[i : i + 1], steps, unit)
            tail = 50 * (1 - INTERVAL)
            median, low, high = np.percentile(drawn, [50, tail, 100 - tail])
            row |= {kind: float(median), f"{kind}_low": float(low), f"{kind}_high": float(high)}
        if not np.isfinite(value):
            row["measured_is"] = "above the grid" if value > 0 else "below the grid"
        found.append(row)
    return found


def _draws(prior: Prior, count: int = 2000) -> np.ndarray:
    normal = np.random.default_rng(0).normal(size=(count, len(prior.mean)))
    return prior.mean + prior.spread * normal


def probe_runs(setting: Setting, lags: tuple[int, ...], num_steps: int) -> collapse_law.Runs:
    """Returns the runs that a probe of a setting would make, taken from its map and cut short.

    Args:
      setting: has the map. The first seed is the probe's.
      lags: the lags of the probe. The nearest of the map are used.
      num_steps: learner steps of a run of the probe.
    """
    records = setting.records
    first = min(r["seed"] for r in records)
    own = {(r["max_lag"], r["learning_rate"]): r for r in records if r["seed"] == first}
    there = sorted({lag for lag, _ in own})
    nearest = {min(there, key=lambda lag: abs(np.log1p(lag) - np.log1p(asked))) for asked in lags}

    def run(lag: int, rate: float) -> tuple[bool, dict]:
        record = own[lag, rate]
        return bool(collapse_law.runs([record]).cut(num_steps).collapsed[0]), record

    visited = probe(run, sorted(nearest), sorted({rate for _, rate in own}))
    return collapse_law.runs(visited, setting.age).cut(num_steps)


def factors(ratios: list[float]) -> dict[str, float | None]:
    """Returns statistics of how far predictions are off, as factors of at least 1."""
    if not ratios:
        return {"median": None, "largest": None, "within_typical": None}
    off = np.exp(np.abs(np.log(ratios)))
    return {
        "median": float(np.median(off)),
        "largest": float(off.max()),
        "within_typical": float(np.mean(off <= TYPICAL)),
    }
