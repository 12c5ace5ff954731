"""Computes the numbers of summary.json from the records: a row for each correction.

Intervals are 95 % percentile intervals. They resample:

- draws, for bias and variance.
- rounds, for times.
- seeds, for trainings. Those that begin from the same warm start count as independent, so the
  intervals do not cover other warm starts.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from experiments.corrections.bias import TRAJECTORIES
from experiments.corrections.stability import BASELINE
from experiments.corrections.surrogates import surrogate_of
from staleness_grpo.scaling import stability
from staleness_grpo.scaling.bootstrap import group_interval, percentile_interval, resampled_rows

RESAMPLES = 200
# The two values of S * eta for which tables show the bias. In the default config, the first is the
# largest at which grpo_clip clips no token in any draw. At the second, it clips tokens in nearly
# all draws.
S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING = 2.0**-7, 2.0**-3


def summarize(
    config: ConfigDict, bias: list[dict], variance: list[dict], cost: list[dict], cells: list[dict]
) -> dict[str, Any]:
    """Returns summary.json without its sentences.

    Returns:
      A dictionary with the keys:

      - `s_eta`: the two values of S * eta for which tables show the bias.
      - `corrections`: a row for each correction or update rule, by name.
      - `bias_and_stability`: `rank_correlation` by S.
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


def mean_and_interval(independent: list[float]) -> dict[str, Any]:
    """Returns the mean of independent values, its interval, and their number."""
    values = np.array(independent)
    return {
        "mean": float(values.mean()),
        "interval": group_interval(
            np.arange(len(values)), lambda rows: values[rows].mean(), RESAMPLES
        ),
        "n": len(values),
    }


def bias_row(records: list[dict]) -> dict[str, Any]:
    """Returns a correction's offset, and its relative bias and cosine by trajectory and S * eta.

    The row is empty for a correction without records, since it has no exact coefficients.
    """
    if not records:
        return {}
    offset_of_draw = {r["draw"]: r["offset"] for r in records}  # equal at every eta
    row: dict[str, Any] = {"offset": mean_and_interval(list(offset_of_draw.values()))}
    for quantity in ("relative_bias", "cosine"):
        row[quantity] = {
            trajectory: {
                f"{s_eta:g}": mean_and_interval(
                    [
                        r[quantity]
                        for r in records
                        if r["path"] == trajectory and r["s_eta"] == s_eta
                    ]
                )
                for s_eta in sorted({r["s_eta"] for r in records})
            }
            for trajectory in TRAJECTORIES
        }
    return row


def variance_row(records: list[dict], name: str) -> dict[str, Any]:
    """Returns the ratio of a method's gradient variance to the baseline's, at the same policies.

    The ratio is a geometric mean over draws. The row is empty if one of the two was not measured.
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
    """Returns the ratio of a method's update time to the baseline's time in the same round.

    The ratio is a median over rounds. The row is empty for a method that was not timed.
    """
    seconds = {
        key: {r["round"]: r["time_update"] for r in records if r["method"] == key}
        for key in (name, BASELINE)
    }
    ratio = np.array(
        [seconds[name][round_] / seconds[BASELINE][round_] for round_ in seconds[name]]
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
    """Returns the stability and the final rewards of each trained method.

    Returns:
      A row for each method. Every entry of a row is a dictionary by S:

      - `eta_max`: the highest stable learning rate.
      - `eta_max_over_baseline`: ratio of `eta_max` to the baseline's.
      - `final_reward`: final reward at the learning rate of the grid nearest to the baseline's
        `eta_max`.
      - `best_reward`: highest final reward of any learning rate of the grid.
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
        base_cells = cells_at_lag(by_method[BASELINE], lag, horizon)
        log_base = resampled_log_eta_max(base_cells, rates, draws)
        boundary = rates[np.argmin(np.abs(np.log(rates) - log_base[0]))]
        for method, records in by_method.items():
            log_own = resampled_log_eta_max(cells_at_lag(records, lag, horizon), rates, draws)
            ratio = np.exp(log_own - log_base)
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
            rows[method]["eta_max"][str(lag)] = float(np.exp(log_own[0]))
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


def cells_at_lag(records: list[dict], lag: int, horizon: int) -> stability.Cells:
    """Returns the cells of one S. Learner steps after the horizon are ignored."""
    return stability.at_horizons([r for r in records if r["max_lag"] == lag], (horizon,))


def clipped_log_eta_max(cells: stability.Cells, rates: np.ndarray) -> float:
    """Returns log eta_max of one S.

    If none or all of the cells collapsed, it is half a grid step outside the grid.
    """
    (value,) = stability.measured_log_eta_max(cells).values()
    step = np.diff(np.log(rates)).mean()
    return float(np.clip(value, np.log(rates[0]) - step / 2, np.log(rates[-1]) + step / 2))


def seed_draws(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the seeds themselves, then the seeds of each resample.

    The resamples are the same in every call, so that all methods are compared on the same seeds.
    """
    resampled = (np.array(seeds)[rows] for rows in resampled_rows(np.array(seeds), RESAMPLES))
    return [tuple(seeds), *(tuple(sorted(drawn.tolist())) for drawn in resampled)]


def resampled_log_eta_max(
    cells: stability.Cells, rates: np.ndarray, draws: list[tuple[int, ...]]
) -> np.ndarray:
    """Returns log eta_max for each draw of seeds, from the cells with these seeds."""
    of_draw: dict[tuple[int, ...], float] = {}
    for draw in draws:
        if draw not in of_draw:  # few seeds have few different draws, so most are computed already
            rows = np.concatenate([np.flatnonzero(cells.seed == seed) for seed in draw])
            of_draw[draw] = clipped_log_eta_max(cells[rows], rates)
    return np.array([of_draw[draw] for draw in draws])


def rank_correlation(rows: dict[str, dict], lag: int) -> dict[str, Any]:
    """Returns Spearman's correlation of relative bias with eta_max at one S.

    The correlation is over the corrections that have both numbers. The relative bias is taken at
    S_ETA_AFTER_CLIPPING on the synchronous trajectory. With fewer than three corrections,
    `spearman` is None.
    """
    rows_with_both = [row for row in rows.values() if "relative_bias" in row and "eta_max" in row]
    s_eta = f"{S_ETA_AFTER_CLIPPING:g}"
    bias = [row["relative_bias"]["synchronous"][s_eta]["mean"] for row in rows_with_both]
    eta_max = [row["eta_max"][str(lag)] for row in rows_with_both]
    spearman = spearmanr(bias, eta_max).statistic if len(rows_with_both) > 2 else None
    return {"spearman": spearman, "n": len(rows_with_both)}


def comparable_corrections(config: ConfigDict, rows: dict[str, dict]) -> list[str]:
    """Returns the corrections whose bias is measured against the same H_sync as the baseline's.

    A correction that prescribes another normalization has a different H_sync, so that its bias
    cannot be compared.
    """
    surrogate = config.surrogate.to_dict()
    baseline_surrogate = surrogate_of(BASELINE, surrogate)
    return [
        name
        for name, row in rows.items()
        if "relative_bias" in row and surrogate_of(name, surrogate) == baseline_surrogate
    ]
