"""What one map of cells says: its boundary, collapse times, rules and constants.

Intervals are 95 % percentile intervals of a bootstrap over seeds; n counts cells.
"""

import dataclasses

import numpy as np

from experiments import sweep_signs
from staleness_grpo.scaling import stability
from staleness_grpo.scaling.censored import bootstrap, fit_censored_power_law

STALE = 16  # S from which the collapse time is asked to be independent of S
CLIP_LEVEL = 0.1  # clip fraction at which the drift is called R_batch
RESAMPLES = 100
ENOUGH_COLLAPSES = 3  # of an S, for a mean collapse time


def summarize_map(records: list[dict], horizons: tuple[int, ...]) -> dict:
    """Everything below for one map; counts alone where its cells cannot carry a fit (see `can_be_fitted`)."""
    summary = {
        "num_cells": len(records),
        "num_collapsed": sum(record["collapse_step"] is not None for record in records),
        "horizons": horizons,
    }
    all_cells = stability.at_horizons(records, horizons)
    cells = all_cells[all_cells.max_lag >= 1]
    last = cells[cells.horizon == max(horizons)]
    if not can_be_fitted(last):
        return summary
    by_horizon = {
        t: {"eta_max": eta_max(cells[cells.horizon == t]), "eta_max_slope": slopes(cells[cells.horizon == t])}
        for t in horizons
    }
    summary |= {
        **by_horizon[max(horizons)],
        "by_horizon": {str(t): found for t, found in by_horizon.items()},
        "collapse_time": collapse_time(records),
        "collapse_step_times_eta": by_lag(records),
        "rules": rules(all_cells),
        **constants(records),
        "cosine": sweep_signs.cosine(records),
        "alarms": {sign: sweep_signs.alarm(records, sign) for sign in sweep_signs.SIGNS},
    }
    return summary | {"predicted_eta_max": predicted(summary, cells)}


def seed_halves(cells: stability.Cells) -> np.ndarray:
    """0 or 1 for each cell: the half of the seeds that it belongs to."""
    labels = np.unique(cells.seed)
    return np.searchsorted(labels, cells.seed) // max(len(labels) // 2, 1) % 2


def can_be_fitted(cells: stability.Cells) -> bool:
    """Whether each half of the seeds has stable and collapsing cells, at five lags or more on both sides of STALE."""
    half = seed_halves(cells)
    shares = [cells.collapsed[half == i].mean() for i in (0, 1) if (half == i).any()]
    lags = np.unique(cells.max_lag)
    mixed = len(shares) == 2 and all(0 < share < 1 for share in shares)
    return mixed and len(lags) >= 5 and lags[1] <= STALE < lags[-1]


def eta_max(cells: stability.Cells) -> dict[str, float | None]:
    """The learning rate at which half the cells collapse, by S; null where no cell of the grid or all of them did."""
    found = stability.measured_log_eta_max(cells)
    return {f"{lag:g}": float(np.exp(value)) if np.isfinite(value) else None for lag, value in found.items()}


def slopes(cells: stability.Cells) -> dict[str, dict]:
    """Slope of log eta_max against log S below and from STALE on, each with its interval.

    A seed's boundary at one S is known up to a step of the learning-rate grid, so every resample also moves the grid
    by up to half a step, for each S and drawn seed on its own. Resampled seeds alone would agree to the last digit.
    """
    step = np.diff(np.log(np.unique(cells.learning_rate))).mean()
    rng = np.random.default_rng(1)
    found = {}
    for name, part in (("falling", cells.max_lag <= STALE), ("flat", cells.max_lag >= STALE)):
        inside = cells[part]

        def statistic(rows, inside=inside):
            drawn = inside[rows]
            groups = np.cumsum((np.diff(drawn.max_lag, prepend=-1) != 0) | (np.diff(drawn.seed, prepend=-1) != 0))
            shift = rng.uniform(-step / 2, step / 2, groups[-1] + 1)[groups]
            return stability.slope_of_eta_max(
                dataclasses.replace(drawn, learning_rate=drawn.learning_rate * np.exp(shift))
            )

        found[name] = {
            "lags": sorted(set(inside.max_lag)),
            "slope": stability.slope_of_eta_max(inside),
            "interval": bootstrap(inside.seed, statistic, RESAMPLES),
            "n": len(inside),
        }
    return found


def by_lag(records: list[dict]) -> dict:
    """Mean collapse_step * eta and collapse_step / S of the collapsed runs of each S, and the spread over S >= 16."""
    found = {}
    for lag in sorted({record["max_lag"] for record in records}):
        inside = [r for r in records if r["max_lag"] == lag]
        collapsed = [r for r in inside if r["collapse_step"] is not None]
        if len(collapsed) >= ENOUGH_COLLAPSES:
            products = np.array([r["collapse_step"] * r["learning_rate"] for r in collapsed])
            found[str(lag)] = {
                "mean": products.mean(),
                "std": products.std(ddof=1),
                "t_c_over_s": np.mean([r["collapse_step"] for r in collapsed]) / max(lag, 1),
                "n": len(collapsed),
                "n_censored": len(inside) - len(collapsed),
            }
    stale = [r for r in records if r["max_lag"] >= STALE and r["collapse_step"] is not None]
    products = np.array([r["collapse_step"] * r["learning_rate"] for r in stale])
    # During its first S steps a run is bit for bit that of any longer lag: no evidence on S.
    later = np.array([r["collapse_step"] * r["learning_rate"] for r in stale if r["collapse_step"] > r["max_lag"]])
    means = np.array([found[lag]["mean"] for lag in found if int(lag) >= STALE])
    return {
        "by_lag": found,
        "mean": products.mean(),
        "cv_of_runs": products.std(ddof=1) / products.mean(),
        "cv_of_lag_means": means.std(ddof=1) / means.mean() if len(means) > 1 else None,
        "cv_interval": bootstrap(
            np.array([r["seed"] for r in stale]), lambda rows: products[rows].std() / products[rows].mean(), RESAMPLES
        ),
        "n": len(stale),
        "cv_after_first_lag": later.std(ddof=1) / later.mean() if len(later) > 1 else None,
        "n_after_first_lag": len(later),
    }


def collapse_time(records: list[dict]) -> dict:
    """Exponents of t_c ~ eta^b S^c over the runs with S >= 16, those without a collapse taken as censored."""
    stale = [r for r in records if r["max_lag"] >= STALE]
    rate = np.array([r["learning_rate"] for r in stale])
    log_lag = np.log([r["max_lag"] for r in stale])[:, None]
    censored = np.array([r["collapse_step"] is None for r in stale])
    step = np.array([r["steps_run"] if r["collapse_step"] is None else r["collapse_step"] for r in stale], float)

    def exponents(rows):
        return fit_censored_power_law(rate[rows], step[rows], censored[rows], log_lag[rows]).parameters[1:]

    fit = fit_censored_power_law(rate, step, censored, log_lag)
    low, high = bootstrap(np.array([r["seed"] for r in stale]), exponents, RESAMPLES)
    return {
        "eta_exponent": fit.parameters[1],
        "eta_exponent_interval": [low[0], high[0]],
        "s_exponent": fit.parameters[2],
        "s_exponent_interval": [low[1], high[1]],
        "sigma": fit.sigma,
        "n": len(stale),
        "n_censored": int(censored.sum()),
    }


def rules(cells: stability.Cells) -> dict:
    """Each rule's fit to all seeds where S >= 1, and how it does on the half of the seeds that it was not fitted to."""
    found = {}
    stale = cells[cells.max_lag >= 1]
    for name in stability.RULES:
        fit = stability.fit_rule(name, stale)
        held_out = stability.cross_validate(name, cells, seed_halves(cells))
        found[name] = {
            "parameters": fit.parameters,
            "sigma": fit.sigma,
            "log_likelihood": fit.log_likelihood,
            "held_out_log_likelihood": held_out.log_likelihood,
            "held_out_balanced_accuracy": held_out.balanced_accuracy,
            "held_out_balanced_accuracy_stale": held_out.balanced_accuracy_stale,
            "n": len(stale),
        }
    return found


def best_rule(found: dict) -> str:
    """The rule of highest held-out likelihood."""
    return max(found, key=lambda name: found[name]["held_out_log_likelihood"])


def constants(records: list[dict]) -> dict:
    """G_upd, R_batch and R_crit: medians over runs with S >= 1, with intervals.

    G_upd: update norm / eta before the collapse. R_batch: drift from the behavior policy where the clip fraction
    first passes CLIP_LEVEL. R_crit: length of the parameters' path, the sum of the update norms, up to the collapse.
    """
    values = {"g_upd": [], "r_batch": [], "r_crit": []}
    for record in records:
        if record["max_lag"] < 1:
            continue
        traces, every = record["traces"], record["trace_every"]
        values["g_upd"].append((record["seed"], record["update_norm"] / record["learning_rate"]))
        passed = np.flatnonzero(np.array(traces["clip_fraction"], float) > CLIP_LEVEL)
        if passed.size:
            values["r_batch"].append((record["seed"], traces["drift_from_behavior"][passed[0]]))
        if record["collapse_step"] is not None:
            path = every * np.sum(traces["update_norm"][: record["collapse_step"] // every])
            values["r_crit"].append((record["seed"], path))
    found = {}
    for name, pairs in values.items():
        seeds, numbers = (np.array(column) for column in zip(*pairs, strict=True))
        found[name] = np.median(numbers)
        found[f"{name}_interval"] = bootstrap(seeds, lambda rows, x=numbers: np.median(x[rows]), RESAMPLES)
        found[f"{name}_n"] = len(numbers)
    return found


def predicted(summary: dict, cells: stability.Cells) -> dict:
    """The paper's rule with the measured constants, and its distance from the measured boundary in grid steps."""
    horizon = max(summary["horizons"])
    rates = np.unique(cells.learning_rate)
    step = np.diff(np.log(rates)).mean()
    found = {"grid_step": float(np.exp(step)), "by_lag": {}, "distances": []}
    for lag, measured in summary["eta_max"].items():
        batch = summary["r_batch"] / (float(lag) * summary["g_upd"])
        critical = summary["r_crit"] / (horizon * summary["g_upd"])
        found["by_lag"][lag] = min(batch, critical)
        if measured is not None:
            found["distances"].append(float(np.log(min(batch, critical) / measured) / step))
    found["mean_distance"] = float(np.mean(np.abs(found["distances"]))) if found["distances"] else None
    best = best_rule(summary["rules"])
    lags = [float(lag) for lag, value in summary["eta_max"].items() if value is not None]
    measured = np.log([value for value in summary["eta_max"].values() if value is not None])
    fitted = stability.log_eta_max(best, summary["rules"][best]["parameters"], lags, horizon)
    found["fitted_mean_distance"] = float(np.mean(np.abs(fitted - measured) / step))
    return found
