"""Turns the records of the corrections into summary.json: one row of numbers for each correction.

Intervals are 95 % percentile intervals. They resample problem draws for what is exact or sampled on
enumerable problems, rounds for times, and seeds for trainings.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from experiments.corrections.exact import PATHS, surrogate_of
from experiments.corrections.stability import BASELINE
from staleness_grpo.scaling import stability
from staleness_grpo.scaling.bootstrap import group_interval, percentile_interval, resampled_rows

RESAMPLES = 200
# S * eta at which a table entry is taken. The first is the largest at which grpo_clip clips nothing
# in any draw of the default config. At the second it clips in nearly all.
S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING = 2.0**-7, 2.0**-3


def summarize(
    config: ConfigDict, bias: list[dict], variance: list[dict], cost: list[dict], cells: list[dict]
) -> dict[str, Any]:
    """Returns all of summary.json but its sentences.

    `corrections` has a row for each correction or update rule. `s_eta` has the two S * eta at which
    table entries are taken.
    """
    trained = training_rows(config, cells)
    rows: dict[str, dict] = {name: {} for name in (*config.corrections, *trained)}
    for name in rows:
        rows[name] |= bias_row([r for r in bias if r["correction"] == name])
        rows[name] |= variance_row(variance, name)
        rows[name] |= cost_row(cost, name)
        rows[name] |= trained.get(name, {})
    return {
        "s_eta": [S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING],
        "corrections": rows,
        "bias_and_stability": {
            str(lag): rank_correlation(rows, lag) for lag in config.stability.sweep.max_lags
        },
    }


def mean_and_interval(per_draw: list[float]) -> dict[str, Any]:
    """Returns the mean over draws with its interval."""
    values = np.array(per_draw)
    return {
        "mean": float(values.mean()),
        "interval": group_interval(
            np.arange(len(values)), lambda rows: values[rows].mean(), RESAMPLES
        ),
        "n": len(values),
    }


def bias_row(records: list[dict]) -> dict[str, Any]:
    """Returns a correction's offset, and its relative bias and cosine by path and S * eta.

    It is empty for a correction without exact coefficients.
    """
    if not records:
        return {}
    offset_of_draw = {r["draw"]: r["offset"] for r in records}  # the same at every learning rate
    row: dict[str, Any] = {"offset": mean_and_interval(list(offset_of_draw.values()))}
    for quantity in ("relative_bias", "cosine"):
        row[quantity] = {
            path: {
                f"{s_eta:g}": mean_and_interval(
                    [r[quantity] for r in records if r["path"] == path and r["s_eta"] == s_eta]
                )
                for s_eta in sorted({r["s_eta"] for r in records})
            }
            for path in PATHS
        }
    return row


def variance_row(records: list[dict], name: str) -> dict[str, Any]:
    """Returns the variance of a batch's gradient over the baseline's at the same policies.

    It is the geometric mean over draws.
    """
    by_draw = {
        key: np.array([r["relative_variance"] for r in records if r["correction"] == key])
        for key in (name, BASELINE)
    }
    if not by_draw[name].size or not by_draw[BASELINE].size:
        return {}
    log_ratio = np.log(by_draw[name] / by_draw[BASELINE])
    low, high = group_interval(
        np.arange(len(log_ratio)), lambda rows: log_ratio[rows].mean(), RESAMPLES
    )
    return {
        "variance_ratio": {
            "mean": float(np.exp(log_ratio.mean())),
            "interval": [np.exp(low), np.exp(high)],
            "n": len(log_ratio),
        }
    }


def cost_row(records: list[dict], name: str) -> dict[str, Any]:
    """Returns the time of an update over the baseline's in the same round: the median over rounds.

    It is empty for what was not timed.
    """
    seconds = {
        key: {r["round"]: r["time_update"] for r in records if r["method"] == key}
        for key in (name, BASELINE)
    }
    ratio = np.array(
        [seconds[name][number] / seconds[BASELINE][number] for number in seconds[name]]
    )
    if not ratio.size:
        return {}
    interval = group_interval(
        np.arange(len(ratio)), lambda rows: np.asarray(np.median(ratio[rows])), RESAMPLES
    )
    return {
        "update_time_ratio": {
            "median": float(np.median(ratio)),
            "interval": interval,
            "n": len(ratio),
        }
    }


def training_rows(config: ConfigDict, cells: list[dict]) -> dict[str, dict]:
    """Returns what the trainings of each method say, by S.

    `eta_max` is the stable learning rate, and `eta_max_over_baseline` its ratio to the baseline's.
    `final_reward` is that at the baseline's boundary, `best_reward` that at the best learning rate
    of the grid.
    """
    horizon = config.stability.steps
    by_method: dict[str, list[dict]] = {}
    for record in cells:
        by_method.setdefault(record["method"], []).append(record)
    rates = np.unique([r["learning_rate"] for r in cells])
    draws = seed_draws(config.stability.sweep.seeds)
    rows: dict[str, dict] = {
        method: {"eta_max": {}, "eta_max_over_baseline": {}, "final_reward": {}, "best_reward": {}}
        for method in by_method
    }
    for lag in config.stability.sweep.max_lags:
        base = resampled_log_eta_max(of_lag(by_method[BASELINE], lag, horizon), rates, draws)
        boundary = rates[np.argmin(np.abs(np.log(rates) - base[0]))]
        for method, records in by_method.items():
            own = resampled_log_eta_max(of_lag(records, lag, horizon), rates, draws)
            ratio = np.exp(own - base)
            rewards = {
                float(rate): mean_and_interval(
                    [
                        r["final"]
                        for r in records
                        if r["max_lag"] == lag and r["learning_rate"] == rate
                    ]
                )
                for rate in rates
            }
            means = {rate: reward["mean"] for rate, reward in rewards.items()}
            best = max(means, key=means.__getitem__)
            rows[method]["eta_max"][str(lag)] = float(np.exp(own[0]))
            rows[method]["final_reward"][str(lag)] = rewards[boundary] | {
                "learning_rate": float(boundary)
            }
            rows[method]["best_reward"][str(lag)] = rewards[best] | {"learning_rate": best}
            rows[method]["eta_max_over_baseline"][str(lag)] = {
                "ratio": float(ratio[0]),
                "interval": list(percentile_interval(ratio[1:])),
                "n": len(draws[0]),
            }
    return rows


def of_lag(records: list[dict], lag: int, horizon: int) -> stability.Cells:
    """Returns the cells of one S, looked at up to the horizon."""
    return stability.at_horizons([r for r in records if r["max_lag"] == lag], (horizon,))


def clipped_log_eta_max(cells: stability.Cells, rates: np.ndarray) -> float:
    """Returns log eta_max of one S.

    It is half a grid step outside the grid where none or all of the cells collapsed.
    """
    (value,) = stability.measured_log_eta_max(cells).values()
    step = np.diff(np.log(rates)).mean()
    return float(np.clip(value, np.log(rates[0]) - step / 2, np.log(rates[-1]) + step / 2))


def seed_draws(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the seeds themselves, then those of each resample, the same for every correction."""
    resampled = (np.array(seeds)[rows] for rows in resampled_rows(np.array(seeds), RESAMPLES))
    return [tuple(seeds), *(tuple(sorted(drawn.tolist())) for drawn in resampled)]


def resampled_log_eta_max(
    cells: stability.Cells, rates: np.ndarray, draws: list[tuple[int, ...]]
) -> np.ndarray:
    """Returns log eta_max of the cells of each draw of seeds."""
    of_draw: dict[tuple[int, ...], float] = {}
    for draw in draws:
        if draw not in of_draw:  # few seeds make few different draws
            rows = np.concatenate([np.flatnonzero(cells.seed == seed) for seed in draw])
            of_draw[draw] = clipped_log_eta_max(cells[rows], rates)
    return np.array([of_draw[draw] for draw in draws])


def rank_correlation(rows: dict[str, dict], lag: int) -> dict[str, Any]:
    """Returns Spearman's correlation of relative bias with eta_max at one S.

    It is over the trained corrections; the bias is that at S_ETA_AFTER_CLIPPING on the synchronous
    path. It is null for fewer than three corrections.
    """
    both = [row for row in rows.values() if "relative_bias" in row and "eta_max" in row]
    s_eta = f"{S_ETA_AFTER_CLIPPING:g}"
    bias = [row["relative_bias"]["synchronous"][s_eta]["mean"] for row in both]
    eta_max = [row["eta_max"][str(lag)] for row in both]
    spearman = spearmanr(bias, eta_max).statistic if len(both) > 2 else None
    return {"spearman": spearman, "n": len(both)}


def comparable(config: ConfigDict, rows: dict[str, dict]) -> list[str]:
    """Returns the corrections whose bias is against the same H_sync as the baseline's.

    Those that fix another normalization have an H_sync of their own.
    """
    surrogate = config.surrogate.to_dict()
    same = surrogate_of(BASELINE, surrogate)
    return [
        name
        for name, row in rows.items()
        if "relative_bias" in row and surrogate_of(name, surrogate) == same
    ]
