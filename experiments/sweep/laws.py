"""The laws that one map of cells follows: its boundary, collapse times, rules and constants.

Intervals are 95 % percentile intervals of a bootstrap over seeds. `n` counts cells, or pairs of
cell and horizon. `num_seeds` counts what is independent.
"""

import dataclasses
from typing import Any

import numpy as np

from staleness_grpo.scaling import stability
from staleness_grpo.scaling.bootstrap import group_interval
from staleness_grpo.scaling.censored import fit_censored_power_law

LONG_LAG = 16  # S from which the collapse time and eta_max are asked to be independent of S
CLIP_LEVEL = 0.1  # clip fraction at which the drift is called R_batch
RESAMPLES = 100
MIN_COLLAPSES = 3  # of one S, for a mean collapse time


def collapsed(records: list[dict]) -> list[dict]:
    """Returns the records of the runs that collapsed."""
    return [record for record in records if record["collapse_step"] is not None]


def num_seeds(records: list[dict]) -> int:
    """Returns how many different seeds the records have."""
    return len({record["seed"] for record in records})


def seed_halves(cells: stability.Cells) -> np.ndarray:
    """Returns 0 or 1 for each cell: the half of the seeds that it belongs to."""
    labels = np.unique(cells.seed)
    return np.searchsorted(labels, cells.seed) // max(len(labels) // 2, 1) % 2


def eta_max(cells: stability.Cells) -> dict[str, float | None]:
    """Returns the learning rate at which half the cells collapse, by S.

    It is null where no cell of the grid collapsed, or all of them did.
    """
    return {
        f"{lag:g}": float(np.exp(value)) if np.isfinite(value) else None
        for lag, value in stability.measured_log_eta_max(cells).items()
    }


def slopes(cells: stability.Cells) -> dict[str, dict]:
    """Returns the slope of log eta_max against log S up to LONG_LAG and from it on.

    A seed's boundary at one S is known up to a step of the learning-rate grid. So every resample
    also moves the grid by up to half a step, for each S and drawn seed on its own. Resampled seeds
    alone would agree to the last digit.
    """
    step = np.diff(np.log(np.unique(cells.learning_rate))).mean()
    rng = np.random.default_rng(1)
    by_range = {}
    for name, part in (("falling", cells.max_lag <= LONG_LAG), ("flat", cells.max_lag >= LONG_LAG)):
        inside = cells[part]

        def statistic(rows: np.ndarray, inside: stability.Cells = inside) -> np.ndarray:
            drawn = inside[rows]
            groups = np.cumsum(
                (np.diff(drawn.max_lag, prepend=-1) != 0) | (np.diff(drawn.seed, prepend=-1) != 0)
            )
            shift = rng.uniform(-step / 2, step / 2, groups[-1] + 1)[groups]
            moved = dataclasses.replace(drawn, learning_rate=drawn.learning_rate * np.exp(shift))
            return np.asarray(stability.slope_of_eta_max(moved))

        by_range[name] = {
            "lags": sorted(set(inside.max_lag)),
            "slope": stability.slope_of_eta_max(inside),
            "interval": group_interval(inside.seed, statistic, RESAMPLES),
            "n": len(inside),
            "num_seeds": len(np.unique(inside.seed)),
        }
    return by_range


def collapse_step_times_eta(records: list[dict]) -> dict[str, Any]:
    """Returns collapse_step * eta of the collapsed runs, and its spread over S >= LONG_LAG.

    `by_lag` has its mean and standard deviation for each S with MIN_COLLAPSES collapses or more,
    and `t_c_over_s`, the mean collapse step over S.
    """
    by_lag: dict[str, dict] = {}
    for lag in sorted({record["max_lag"] for record in records}):
        inside = [r for r in records if r["max_lag"] == lag]
        fallen = collapsed(inside)
        if len(fallen) >= MIN_COLLAPSES:
            products = np.array([r["collapse_step"] * r["learning_rate"] for r in fallen])
            by_lag[str(lag)] = {
                "mean": products.mean(),
                "std": products.std(ddof=1),
                "t_c_over_s": np.mean([r["collapse_step"] for r in fallen]) / max(lag, 1),
                "n": len(fallen),
                "n_censored": len(inside) - len(fallen),
            }
    stale = [r for r in collapsed(records) if r["max_lag"] >= LONG_LAG]
    products = np.array([r["collapse_step"] * r["learning_rate"] for r in stale])
    # During its first S steps a run is bit for bit that of any longer lag: no evidence on S.
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
    """Returns the exponents of t_c ~ eta^b S^c over the runs with S >= LONG_LAG.

    Runs without a collapse count as censored.
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
    """Returns each rule's fit to all seeds where S >= 1, and how it does on held-out seeds.

    Held-out numbers are of the half of the seeds that the rule was not fitted to, both halves taken
    together.
    """
    by_rule = {}
    stale = cells[cells.max_lag >= 1]
    for name in stability.RULES:
        fit = stability.fit_rule(name, stale)
        held_out = stability.cross_validate(name, cells, seed_halves(cells))
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
    """Returns the name of the rule with the highest held-out likelihood."""
    return max(by_rule, key=lambda name: by_rule[name]["held_out_log_likelihood"])


def constants(records: list[dict]) -> dict[str, Any]:
    """Returns G_upd, R_batch and R_crit: medians over runs with S >= 1, with intervals.

    G_upd is the update norm over eta before the collapse. R_batch is the drift from the behavior
    policy where the clip fraction first passes CLIP_LEVEL. R_crit is the length of the parameters'
    path up to the collapse, which is the sum of the update norms.
    """
    values: dict[str, list[tuple[int, float]]] = {"g_upd": [], "r_batch": [], "r_crit": []}
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
    medians: dict[str, Any] = {}
    for name, pairs in values.items():
        seeds, numbers = (np.array(column) for column in zip(*pairs, strict=True))

        def median(rows: np.ndarray, numbers: np.ndarray = numbers) -> np.ndarray:
            return np.median(numbers[rows])

        medians[name] = np.median(numbers)
        medians[f"{name}_interval"] = group_interval(seeds, median, RESAMPLES)
        medians[f"{name}_n"] = len(numbers)
    return medians


def predicted_eta_max(summary: dict[str, Any], cells: stability.Cells) -> dict[str, Any]:
    """Returns the paper's rule with the measured constants, and how far off it is.

    `by_lag` is min(R_batch / (S G_upd), R_crit / (T G_upd)), arXiv 2607.01083. `distances` are its
    distances from the measured boundary in steps of the learning-rate grid.
    `fitted_mean_distance` is that of the best fitted rule.
    """
    horizon = max(summary["horizons"])
    rates = np.unique(cells.learning_rate)
    step = np.diff(np.log(rates)).mean()
    by_lag, distances = {}, []
    for lag, measured in summary["eta_max"].items():
        batch = summary["r_batch"] / (float(lag) * summary["g_upd"])
        critical = summary["r_crit"] / (horizon * summary["g_upd"])
        by_lag[lag] = min(batch, critical)
        if measured is not None:
            distances.append(float(np.log(min(batch, critical) / measured) / step))
    best = best_rule(summary["rules"])
    known = {float(lag): value for lag, value in summary["eta_max"].items() if value is not None}
    fitted = stability.log_eta_max(
        best, summary["rules"][best]["parameters"], np.array(list(known)), horizon
    )
    measured_log = np.log(list(known.values()))
    return {
        "grid_step": float(np.exp(step)),
        "by_lag": by_lag,
        "distances": distances,
        "mean_distance": float(np.mean(np.abs(distances))) if distances else None,
        "fitted_mean_distance": float(np.mean(np.abs(fitted - measured_log) / step)),
    }
