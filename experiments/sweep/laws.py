"""Fits laws to one map of cells.

The laws are about the following:

- the boundary eta_max between stable and collapsing cells
- the time of the collapse
- the rules that predict the boundary, and the constants of the paper's rule

Intervals are 95 % percentile intervals of a bootstrap over seeds. In the results, `n` is the number
of cells, or of pairs of a cell and a horizon. `num_seeds` is the number of seeds.

Seeds that begin from the same warm start count as independent. With two warm starts and four seeds
or more, both halves of the seeds have both warm starts. So neither the intervals nor the held-out
numbers cover other warm starts.
"""

import dataclasses
from typing import Any

import numpy as np

from staleness_grpo.scaling import stability
from staleness_grpo.scaling.alarms import CLIP_LEVEL
from staleness_grpo.scaling.bootstrap import group_interval
from staleness_grpo.scaling.censored import fit_censored_power_law

LONG_LAG = 16  # from this S on, the claims say that collapse time and eta_max do not depend on S
RESAMPLES = 100  # of each bootstrap
CONSTANTS = ("g_upd", "r_batch", "r_crit")  # of the paper's rule
MIN_COLLAPSES = 3  # the fewest collapses from which the mean collapse time of one S is computed


def collapsed(records: list[dict]) -> list[dict]:
    """Returns the records of the runs that collapsed."""
    return [record for record in records if record["collapse_step"] is not None]


def num_seeds(records: list[dict]) -> int:
    """Returns how many different seeds the records have."""
    return len({record["seed"] for record in records})


def seed_halves(seeds: np.ndarray) -> np.ndarray:
    """Returns for each cell the half of the seeds that its seed is in, 0 or 1."""
    labels = np.unique(seeds)
    return np.searchsorted(labels, seeds) // max(len(labels) // 2, 1) % 2


def eta_max(cells: stability.Cells) -> dict[str, float | None]:
    """Returns for each S the learning rate at which half of the cells collapse.

    The value is None if no cell with this S collapsed, or if all of them did.
    """
    return {
        f"{lag:g}": float(np.exp(value)) if np.isfinite(value) else None
        for lag, value in stability.measured_log_eta_max(cells).items()
    }


def slopes(cells: stability.Cells) -> dict[str, dict]:
    """Returns the slope of log eta_max against log S, for S <= LONG_LAG and for S >= LONG_LAG.

    The boundary of a seed at one S is known only up to one step of the learning-rate grid. So every
    resample also shifts the learning rates at random by up to half a step. Each S and drawn seed
    has its own shift. Without the shifts, all resamples can give exactly the same slope, and the
    interval would be too narrow.
    """
    step = np.diff(np.log(np.unique(cells.learning_rate))).mean()
    rng = np.random.default_rng(1)
    by_range = {}
    ranges = (("falling", cells.max_lag <= LONG_LAG), ("flat", cells.max_lag >= LONG_LAG))
    for name, is_in_range in ranges:
        in_range = cells[is_in_range]

        def statistic(rows: np.ndarray, in_range: stability.Cells = in_range) -> np.ndarray:
            drawn = in_range[rows]
            groups = np.cumsum(
                (np.diff(drawn.max_lag, prepend=-1) != 0) | (np.diff(drawn.seed, prepend=-1) != 0)
            )
            shift = rng.uniform(-step / 2, step / 2, groups[-1] + 1)[groups]
            shifted = dataclasses.replace(drawn, learning_rate=drawn.learning_rate * np.exp(shift))
            return np.asarray(stability.slope_of_eta_max(shifted))

        by_range[name] = {
            "lags": sorted(set(in_range.max_lag)),
            "slope": stability.slope_of_eta_max(in_range),
            "interval": group_interval(in_range.seed, statistic, RESAMPLES),
            "n": len(in_range),
            "num_seeds": len(np.unique(in_range.seed)),
        }
    return by_range


def collapse_step_times_eta(records: list[dict]) -> dict[str, Any]:
    """Returns statistics of the product collapse_step * eta of the collapsed runs.

    Returns:
      The mean and the coefficients of variation of the product over the runs with S >= LONG_LAG.
      `by_lag` has the mean and the standard deviation for each S, if at least MIN_COLLAPSES of its
      runs collapsed. There, `t_c_over_s` is the mean collapse step divided by S.
    """
    by_lag: dict[str, dict] = {}
    for lag in sorted({record["max_lag"] for record in records}):
        at_lag = [r for r in records if r["max_lag"] == lag]
        collapsed_at_lag = collapsed(at_lag)
        if len(collapsed_at_lag) >= MIN_COLLAPSES:
            products = np.array([r["collapse_step"] * r["learning_rate"] for r in collapsed_at_lag])
            by_lag[str(lag)] = {
                "mean": products.mean(),
                "std": products.std(ddof=1),
                "t_c_over_s": np.mean([r["collapse_step"] for r in collapsed_at_lag]) / max(lag, 1),
                "n": len(collapsed_at_lag),
                "n_censored": len(at_lag) - len(collapsed_at_lag),
            }
    stale = [r for r in collapsed(records) if r["max_lag"] >= LONG_LAG]
    products = np.array([r["collapse_step"] * r["learning_rate"] for r in stale])
    # In its first S steps, a run is bit for bit equal to a run with any longer lag. A collapse in
    # these steps is no evidence that the collapse time is independent of S.
    later = products[[r["collapse_step"] > r["max_lag"] for r in stale]]
    means = np.array([by_lag[lag]["mean"] for lag in by_lag if int(lag) >= LONG_LAG])
    return {
        "by_lag": by_lag,
        "mean": products.mean(),
        "cv_of_runs": products.std(ddof=1) / products.mean(),
        "cv_of_lag_means": means.std(ddof=1) / means.mean() if len(means) > 1 else None,
        "cv_interval": group_interval(
            np.array([r["seed"] for r in stale]),
            lambda rows: products[rows].std() / products[rows].mean(),
            RESAMPLES,
        ),
        "n": len(stale),
        "num_seeds": num_seeds(stale),
        "cv_after_first_lag": later.std(ddof=1) / later.mean() if len(later) > 1 else None,
        "n_after_first_lag": len(later),
    }


def collapse_time(records: list[dict]) -> dict[str, Any]:
    """Returns the exponents b and c of the law t_c ~ eta^b S^c, fitted to runs with S >= LONG_LAG.

    Runs without a collapse are censored: their t_c is known only to be larger than their length.
    """
    stale = [r for r in records if r["max_lag"] >= LONG_LAG]
    rate = np.array([r["learning_rate"] for r in stale])
    log_lag = np.log([r["max_lag"] for r in stale])[:, None]
    censored = np.array([r["collapse_step"] is None for r in stale])
    step = np.array(
        [r["steps_run"] if r["collapse_step"] is None else r["collapse_step"] for r in stale], float
    )

    def exponents(rows: np.ndarray) -> np.ndarray:
        fit = fit_censored_power_law(rate[rows], step[rows], censored[rows], log_lag[rows])
        return fit.parameters[1:]

    fit = fit_censored_power_law(rate, step, censored, log_lag)
    low, high = group_interval(np.array([r["seed"] for r in stale]), exponents, RESAMPLES)
    return {
        "eta_exponent": fit.parameters[1],
        "eta_exponent_interval": [low[0], high[0]],
        "s_exponent": fit.parameters[2],
        "s_exponent_interval": [low[1], high[1]],
        "sigma": fit.sigma,
        "n": len(stale),
        "num_seeds": num_seeds(stale),
        "n_censored": int(censored.sum()),
    }


def rules(cells: stability.Cells) -> dict[str, dict]:
    """Returns for each rule its fit to all cells with S >= 1, and its accuracy on held-out seeds.

    For the held-out numbers, the rule is fitted to each half of the seeds and tested on the other
    half. The numbers of both tests are combined.
    """
    by_rule = {}
    stale = cells[cells.max_lag >= 1]
    for name in stability.RULES:
        fit = stability.fit_rule(name, stale)
        held_out = stability.cross_validate(name, cells, seed_halves(cells.seed))
        by_rule[name] = {
            "parameters": fit.parameters,
            "sigma": fit.sigma,
            "log_likelihood": fit.log_likelihood,
            "held_out_log_likelihood": held_out.log_likelihood,
            "held_out_balanced_accuracy": held_out.balanced_accuracy,
            "held_out_balanced_accuracy_stale": held_out.balanced_accuracy_stale,
            "n": len(stale),
        }
    return by_rule


def best_rule(by_rule: dict[str, dict]) -> str:
    """Returns the name of the rule with the highest held-out likelihood.

    Args:
      by_rule: the result of `rules`.
    """
    return max(by_rule, key=lambda name: by_rule[name]["held_out_log_likelihood"])


def constants(records: list[dict]) -> dict[str, Any]:
    """Returns the constants of the paper's rule: medians over runs with S >= 1, with intervals.

    A constant is left out if no run has a value of it.

    - G_upd is the update norm before the collapse, divided by eta.
    - R_batch is the drift from the behavior policy when the clip fraction first exceeds CLIP_LEVEL.
    - R_crit is the length of the parameters' path up to the collapse, which is the sum of the
      update norms.
    """
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in CONSTANTS}
    for record in records:
        if record["max_lag"] < 1:
            continue
        traces, steps_per_entry = record["traces"], record["trace_every"]
        # A run whose parameters become not finite soon may have no value of a constant.
        if record["update_norm"] is not None:
            g_upd = record["update_norm"] / record["learning_rate"]
            values["g_upd"].append((record["seed"], g_upd))
        above_level = np.flatnonzero(np.array(traces["clip_fraction"], float) > CLIP_LEVEL)
        if above_level.size:
            drift = np.array(traces["drift_from_behavior"], float)[above_level[0]]
            if np.isfinite(drift):
                values["r_batch"].append((record["seed"], drift))
        if record["collapse_step"] is not None:
            num_entries = record["collapse_step"] // steps_per_entry
            norms = np.array(traces["update_norm"][:num_entries], float)
            if np.isfinite(norms).all():
                values["r_crit"].append((record["seed"], steps_per_entry * np.sum(norms)))
    medians: dict[str, Any] = {}
    for name, seeds_and_values in values.items():
        if not seeds_and_values:
            continue
        seeds, of_runs = (np.array(column) for column in zip(*seeds_and_values, strict=True))

        def median(rows: np.ndarray, of_runs: np.ndarray = of_runs) -> np.ndarray:
            return np.median(of_runs[rows])

        medians[name] = np.median(of_runs)
        medians[f"{name}_interval"] = group_interval(seeds, median, RESAMPLES)
        medians[f"{name}_n"] = len(of_runs)
    return medians


def scale_free_ratio(summary: dict[str, Any]) -> float | None:
    """Returns (collapse_step * eta) / (S * eta_max), which has no unit and needs no constant.

    The numerator is the mean over the runs with S >= LONG_LAG that collapsed. The denominator is
    the median over the S from 1 to LONG_LAG whose boundary lies in the grid. In the paper the ratio
    is 3.2e-5 / 1.6e-6 = 20 (arXiv 2607.01083).

    Args:
      summary: the summary of the map, with its boundary and its collapse times.
    """
    products = [
        float(lag) * rate
        for lag, rate in summary["eta_max"].items()
        if rate is not None and float(lag) <= LONG_LAG
    ]
    if not products:
        return None
    return float(summary["collapse_step_times_eta"]["mean"] / np.median(products))


def predicted_eta_max(summary: dict[str, Any], cells: stability.Cells) -> dict[str, Any]:
    """Compares the paper's rule, computed from the measured constants, with the measured boundary.

    Args:
      summary: the summary of the map, with its boundary, rules and constants.
      cells: the cells of the map.

    Returns:
      - `by_lag`: the rule's eta_max = min(R_batch / (S G_upd), R_crit / (T G_upd)) for each S, from
        arXiv 2607.01083.
      - `distances` and `mean_distance`: the distances of these values from the measured boundary,
        in steps of the learning-rate grid.
      - `fitted_mean_distance`: the same mean distance for the best fitted rule.
      - `grid_step`: the ratio of neighboring learning rates of the grid.
    """
    horizon = max(summary["horizons"])
    rates = np.unique(cells.learning_rate)
    step = np.diff(np.log(rates)).mean()
    by_lag, distances = {}, []
    for lag, measured in summary["eta_max"].items():
        staleness_bound = summary["r_batch"] / (float(lag) * summary["g_upd"])
        horizon_bound = summary["r_crit"] / (horizon * summary["g_upd"])
        by_lag[lag] = min(staleness_bound, horizon_bound)
        if measured is not None:
            distances.append(float(np.log(by_lag[lag] / measured) / step))
    best = best_rule(summary["rules"])
    measured_by_lag = {
        float(lag): value for lag, value in summary["eta_max"].items() if value is not None
    }
    fitted = stability.log_eta_max(
        best, summary["rules"][best]["parameters"], np.array(list(measured_by_lag)), horizon
    )
    measured_log = np.log(list(measured_by_lag.values()))
    return {
        "grid_step": float(np.exp(step)),
        "by_lag": by_lag,
        "distances": distances,
        "mean_distance": float(np.mean(np.abs(distances))) if distances else None,
        "fitted_mean_distance": float(np.mean(np.abs(fitted - measured_log) / step)),
    }
