"""Fits the laws to each setting, and compares predicted with measured boundaries."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.law import thresholds
from experiments.law.predictions import heldout
from experiments.law.settings import INTERVENTION_LAG, REFERENCE, Setting, middle_rate
from experiments.sweep.laws import eta_max, seed_halves
from staleness_grpo.scaling import collapse_law, stability
from staleness_grpo.scaling.bootstrap import group_interval
from staleness_grpo.scaling.early_sign import fit_sign
from staleness_grpo.scaling.posterior import Posterior
from staleness_grpo.scaling.prior import best_fit, fit, population, vague

RESAMPLES = 200


def summarize(settings: dict[str, Setting], law: ConfigDict) -> dict[str, Any]:
    """Returns the contents of summary.json without the claims.

    Args:
      settings: the records of all maps, by name.
      law: the section `law` of the config.
    """
    rate = middle_rate(settings[REFERENCE].records)
    runs = {name: setting.runs for name, setting in settings.items()}
    fits = {
        name: fit(of_setting, rate_of(settings, name, rate), vague())
        for name, of_setting in runs.items()
    }
    calibration = [REFERENCE, *law.calibration]
    prior = population([(fits[name], settings[name].b1) for name in calibration])
    return {
        "num_settings": len(settings),
        "reference_rate": rate,
        "prior": {
            "names": collapse_law.NAMES,
            "mean": prior.mean,
            "spread": prior.spread,
            "settings": calibration,
        },
        "settings": {
            name: _setting(setting, runs[name], fits[name], rate_of(settings, name, rate))
            for name, setting in settings.items()
        },
        "momentum": momentum({name: (fits[name], settings[name].b1) for name in calibration}),
        "rules": rules(settings),
        "laws": laws(settings, runs, rate),
        "thresholds": thresholds.judge(
            settings, {name: rate_of(settings, name, rate) for name in settings}
        ),
        "heldout": heldout(settings, law, prior, rate),
        "interventions": interventions(settings, law),
        "signs": signs(settings, calibration),
        "rewards": {name: rewards(settings[name].records) for name in calibration},
    }


def rate_of(settings: dict[str, Setting], name: str, rate: float) -> float:
    """Returns eta_ref of a setting: that of the reference, if its unit is the same.

    SGD and other models have another unit of the learning rate, and so the middle of their grid.
    """
    records = settings[name].records
    rates = {r["learning_rate"] for r in records}
    same = min(rates) <= rate <= max(rates) and settings[name].optimizer == "adam"
    return rate if same else middle_rate(records)


def _setting(
    setting: Setting, runs: collapse_law.Runs, fitted: Posterior, rate: float
) -> dict[str, Any]:
    """Returns counts, constants with 95 % intervals, and the boundary of one setting."""
    draws = dict(zip(collapse_law.NAMES, fitted.constants.T, strict=True))

    def described(values: np.ndarray) -> dict[str, float]:
        median, low, high = fitted.interval(values, 0.95)
        return {"median": median, "low": low, "high": high}

    steps = max(r["steps"] for r in setting.records)
    return {
        "num_cells": len(runs),
        "num_collapsed": int(runs.collapsed.sum()),
        "b1": setting.b1,
        "steps": steps,
        "eta_ref": rate,
        "t_inf": described(np.exp(draws["log_time"])),
        "b": described(draws["b"]),
        "s0": described(np.exp(draws["of_lag"])),
        "cap": described(rate * np.exp(draws["log_cap"])),
        "sigma": described(collapse_law.SMALLEST_SIGMA + np.exp(draws["log_sigma"])),
        "effective_draws": fitted.effective,
        "eta_max": eta_max(stability.at_horizons(setting.records, (steps,))),
    }


def momentum(fits: dict[str, tuple[Posterior, float]]) -> dict[str, Any]:
    """Fits S0 as a power of the momentum's memory 1 / (1 - b1).

    The slope is the least-squares slope of log S0. Its interval takes a draw of each setting's
    posterior at a time.
    """
    memory = np.array([1 / (1 - b1) for _, b1 in fits.values()])
    draws = np.stack([fitted.constants for fitted, _ in fits.values()])
    log_s0 = draws[:, :, collapse_law.NAMES.index("of_lag")]
    centered = np.log(memory) - np.log(memory).mean()
    slopes = centered @ log_s0 / (centered @ centered)
    low, high = np.percentile(slopes, [2.5, 97.5])
    ratios = np.median(log_s0 - np.log(memory)[:, None], axis=1)
    return {
        "slope": float(np.median(slopes)),
        "slope_interval": [float(low), float(high)],
        "memory": memory,
        "s0_over_memory": np.exp(ratios),
        "n": len(fits),
    }


def rules(settings: dict[str, Setting]) -> dict[str, Any]:
    """Judges each rule of the boundary on the half of the seeds that it was not fitted to.

    Returns:
      `by_setting`: the held-out log-likelihood by setting and rule. A setting is left out if a half
        of its seeds has no stable or no collapsing cell at some horizon.
      `sum`: the sums over these settings.
    """
    by_setting: dict[str, dict[str, float]] = {}
    for name, setting in settings.items():
        steps = max(r["steps"] for r in setting.records)
        horizons = tuple(h for h in (100, 300, 600, 900) if h < steps) + (steps,)
        cells = stability.at_horizons(setting.records, horizons)
        try:
            by_setting[name] = {
                rule: stability.cross_validate(rule, cells, seed_halves(cells.seed)).log_likelihood
                for rule in stability.RULES
            }
        except ValueError:  # a half has one outcome alone
            continue
    return {
        "by_setting": by_setting,
        "sum": {
            rule: float(sum(of_setting[rule] for of_setting in by_setting.values()))
            for rule in stability.RULES
        },
        "num_settings": len(by_setting),
    }


def laws(
    settings: dict[str, Setting], runs: dict[str, collapse_law.Runs], rate: float
) -> dict[str, Any]:
    """Judges each law of the collapse time on the half of the seeds that it was not fitted to.

    Returns:
      As `rules`, and `free`, the number of free constants of each law.
    """
    by_setting: dict[str, dict[str, float]] = {}
    for name, of_setting in runs.items():
        of_name = rate_of(settings, name, rate)
        half = seed_halves(of_setting.seed)
        by_setting[name] = {}
        for law in collapse_law.LAWS:
            total = 0.0
            for judged in (0, 1):
                constants = best_fit(of_setting[half != judged], of_name, vague(law), law)
                left = of_setting[half == judged]
                each = collapse_law.log_likelihood(law, constants, left, of_name)
                total += float(each.sum())
            by_setting[name][law] = total
    return {
        "by_setting": by_setting,
        "sum": {law: sum(of[law] for of in by_setting.values()) for law in collapse_law.LAWS},
        "free": {law: len(described.free) for law, described in collapse_law.LAWS.items()},
        "num_settings": len(by_setting),
    }


def signs(settings: dict[str, Setting], calibration: list[str]) -> dict[str, Any]:
    """Fits the relation of the early mean of (log ratio)^2 to the collapse time in each setting.

    Returns:
      `by_setting`: the constants of each setting that has them. `calibration`: the geometric mean
      time, the mean slope, and a sigma that also holds the scatter of the settings' times.
    """
    fitted = {name: fit_sign(setting.records) for name, setting in settings.items()}
    found = {name: law for name, law in fitted.items() if law is not None}
    used = [found[name] for name in calibration if name in found]
    log_times = np.log([law.time for law in used])
    within = np.mean([law.sigma**2 for law in used])
    return {
        "by_setting": {name: dataclasses.asdict(law) for name, law in found.items()},
        "calibration": {
            "time": float(np.exp(log_times.mean())),
            "slope": float(np.mean([law.slope for law in used])),
            "sigma": float(np.sqrt(within + log_times.var())),
        },
    }


def interventions(settings: dict[str, Setting], law: ConfigDict) -> dict[str, Any]:
    """Returns the ratio of eta_max at S = INTERVENTION_LAG with and without each intervention.

    Both are at the last learner step. The interval resamples the seeds of both, and shifts each
    boundary by up to half a step of the grid, because it is known no better.
    """
    base = settings[REFERENCE].records
    found = {}
    for name in law.interventions:
        records = settings[name].records
        value = _boundary(records) - _boundary(base)
        rng = np.random.default_rng(0)
        step = np.diff(np.log(sorted({r["learning_rate"] for r in base}))).mean()
        both = base + records
        groups = np.array(
            [f"base {r['seed']}" for r in base] + [f"changed {r['seed']}" for r in records]
        )

        def statistic(
            rows: np.ndarray, both: list = both, rng: Any = rng, step: float = step
        ) -> np.ndarray:
            without = [both[row] for row in rows if row < len(base)]
            changed = [both[row] for row in rows if row >= len(base)]
            if not without or not changed:
                return np.array(np.nan)
            shift = rng.uniform(-step / 2, step / 2, 2)
            return np.array(_boundary(changed) - _boundary(without) + shift[0] - shift[1])

        low, high = group_interval(groups, statistic, RESAMPLES)
        found[name] = {
            "ratio": _exp(value),
            "low": _exp(low),
            "high": _exp(high),
            "boundary": _exp(_boundary(records)),
        }
    return {"by_name": found, "reference_boundary": _exp(_boundary(base)), "lag": INTERVENTION_LAG}


def _boundary(records: list[dict]) -> float:
    """Returns the measured log eta_max at S = INTERVENTION_LAG, clamped to the grid."""
    at_lag = [r for r in records if r["max_lag"] == INTERVENTION_LAG]
    rates = np.log(sorted({r["learning_rate"] for r in at_lag}))
    half = np.diff(rates).mean() / 2
    cells = stability.at_horizons(at_lag, (min(r["steps"] for r in at_lag),))
    value = next(iter(stability.measured_log_eta_max(cells).values()))
    return float(np.clip(value, rates[0] - half, rates[-1] + half))


def _exp(value: float) -> float | None:
    return float(np.exp(value)) if np.isfinite(value) else None


def rewards(records: list[dict]) -> dict[str, dict[str, float]]:
    """Returns, for each S, the best mean final reward of any learning rate, and that rate."""
    found = {}
    for lag in sorted({r["max_lag"] for r in records}):
        at_lag = [r for r in records if r["max_lag"] == lag]
        finals = {
            rate: float(np.mean([r["final"] for r in at_lag if r["learning_rate"] == rate]))
            for rate in sorted({r["learning_rate"] for r in at_lag})
        }
        best = max(finals, key=lambda rate: finals[rate])
        found[str(lag)] = {"best_final": finals[best], "learning_rate": best}
    return found
