"""From the records of the corrections to summary.json: one row for each correction, and the claims.

Intervals are 95 % percentile intervals: of a bootstrap over problem draws for what is exact or sampled on enumerable
problems, over seeds for trainings. A correction's stable learning rate is higher than the baseline's at one S when
the interval of log(eta_max / eta_max of grpo_clip), seeds resampled jointly, lies above 0. That was fixed before
the trainings were run.
"""

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

from experiments.corrections_exact import surrogate_of
from experiments.corrections_stability import BASELINE
from staleness_grpo.scaling import stability
from staleness_grpo.scaling.censored import bootstrap

COMMAND = "python -m experiments.corrections --workdir=DIR"
RESAMPLES = 200
# S * eta at which a table entry is taken: the largest at which grpo_clip clips nothing in any draw of the default
# config, and one at which it clips in nearly all.
SMALL, LARGE = 2.0**-7, 2.0**-3


def summarize(config: ConfigDict, bias: list[dict], variance: list[dict], cost: list[dict], cells: list[dict]) -> dict:
    """A row for each correction or update rule, the claims, and the two constants that entries are taken at."""
    trained = training_rows(config, cells)
    rows = {name: {} for name in (*config.corrections, *trained)}
    for name in rows:
        rows[name] |= bias_row([r for r in bias if r["correction"] == name])
        rows[name] |= variance_row(variance, name)
        rows[name] |= cost_row(cost, name)
        rows[name] |= trained.get(name, {})
    return {
        "s_eta": [SMALL, LARGE],
        "corrections": rows,
        "bias_and_stability": {str(lag): rank_correlation(rows, lag) for lag in config.stability.sweep.max_lags},
        "claims": claims(config, rows),
        "reading": reading(config, rows),
    }


def mean_and_interval(values: list[float]) -> dict:
    """Mean over draws with its interval."""
    values = np.array(values)
    return {
        "mean": float(values.mean()),
        "interval": bootstrap(np.arange(len(values)), lambda rows: values[rows].mean(), RESAMPLES),
        "n": len(values),
    }


def bias_row(records: list[dict]) -> dict:
    """offset; relative_bias and cosine by path and S * eta; nothing for a correction without exact coefficients."""
    if not records:
        return {}
    once = {r["draw"]: r["offset"] for r in records}  # the same at every learning rate
    found = {"offset": mean_and_interval(list(once.values()))}
    for quantity in ("relative_bias", "cosine"):
        found[quantity] = {
            path: {
                f"{s_eta:g}": mean_and_interval(
                    [r[quantity] for r in records if r["path"] == path and r["s_eta"] == s_eta]
                )
                for s_eta in sorted({r["s_eta"] for r in records})
            }
            for path in ("synchronous", "own")
        }
    return found


def variance_row(records: list[dict], name: str) -> dict:
    """Variance of a batch's gradient over that of the baseline at the same policies: geometric mean over draws."""
    by_draw = {
        key: np.array([r["relative_variance"] for r in records if r["correction"] == key]) for key in (name, BASELINE)
    }
    if not by_draw[name].size or not by_draw[BASELINE].size:
        return {}
    log_ratio = np.log(by_draw[name] / by_draw[BASELINE])
    low, high = bootstrap(np.arange(len(log_ratio)), lambda rows: log_ratio[rows].mean(), RESAMPLES)
    return {
        "variance_ratio": {
            "mean": float(np.exp(log_ratio.mean())),
            "interval": [np.exp(low), np.exp(high)],
            "n": len(log_ratio),
        }
    }


def cost_row(records: list[dict], name: str) -> dict:
    """Time of an update over the baseline's in the same round: the median over rounds; nothing if it was not timed."""
    seconds = {key: {r["round"]: r["time_update"] for r in records if r["method"] == key} for key in (name, BASELINE)}
    ratio = np.array([seconds[name][number] / seconds[BASELINE][number] for number in seconds[name]])
    if not ratio.size:
        return {}
    interval = bootstrap(np.arange(len(ratio)), lambda rows: np.median(ratio[rows]), RESAMPLES)
    return {"update_time_ratio": {"median": float(np.median(ratio)), "interval": interval, "n": len(ratio)}}


def training_rows(config: ConfigDict, cells: list[dict]) -> dict[str, dict]:
    """eta_max by S and over the baseline's, and final reward: at the baseline's boundary, and the best of the grid."""
    horizon = config.stability.steps
    by_method: dict[str, list[dict]] = {}
    for record in cells:
        by_method.setdefault(record["method"], []).append(record)
    rates = np.unique([r["learning_rate"] for r in cells])
    draws = seed_draws(config.stability.sweep.seeds)
    found = {
        method: {"eta_max": {}, "eta_max_over_baseline": {}, "final_reward": {}, "best_reward": {}}
        for method in by_method
    }
    for lag in config.stability.sweep.max_lags:
        base = resampled_log_eta_max(of_lag(by_method[BASELINE], lag, horizon), rates, draws)
        at = rates[np.argmin(np.abs(np.log(rates) - base[0]))]
        for method, records in by_method.items():
            own = resampled_log_eta_max(of_lag(records, lag, horizon), rates, draws)
            ratio = np.exp(own - base)
            rewards = {
                float(rate): mean_and_interval(
                    [r["final"] for r in records if r["max_lag"] == lag and r["learning_rate"] == rate]
                )
                for rate in rates
            }
            best = max(rewards, key=lambda rate: rewards[rate]["mean"])
            found[method]["eta_max"][str(lag)] = float(np.exp(own[0]))
            found[method]["final_reward"][str(lag)] = rewards[at] | {"learning_rate": float(at)}
            found[method]["best_reward"][str(lag)] = rewards[best] | {"learning_rate": best}
            found[method]["eta_max_over_baseline"][str(lag)] = {
                "ratio": float(ratio[0]),
                "interval": list(np.percentile(ratio[1:], [2.5, 97.5])),
                "n": len(draws[0]),
            }
    return found


def of_lag(records: list[dict], lag: int, horizon: int) -> stability.Cells:
    """The cells of one S, looked at up to the horizon."""
    return stability.at_horizons([r for r in records if r["max_lag"] == lag], (horizon,))


def clipped_log_eta_max(cells: stability.Cells, rates: np.ndarray) -> float:
    """log eta_max of one S; half a grid step outside the grid where none or all of the cells collapsed."""
    (value,) = stability.measured_log_eta_max(cells).values()
    step = np.diff(np.log(rates)).mean()
    return float(np.clip(value, np.log(rates[0]) - step / 2, np.log(rates[-1]) + step / 2))


def seed_draws(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The seeds of each resample, the same for every correction; first the seeds themselves."""
    rng = np.random.default_rng(0)
    return [tuple(seeds), *(tuple(sorted(rng.choice(seeds, len(seeds)))) for _ in range(RESAMPLES))]


def resampled_log_eta_max(cells: stability.Cells, rates: np.ndarray, draws: list[tuple[int, ...]]) -> np.ndarray:
    """log eta_max of the cells of each draw of seeds."""
    of_draw = {}
    for draw in draws:
        if draw not in of_draw:  # few seeds make few different draws
            rows = np.concatenate([np.flatnonzero(cells.seed == seed) for seed in draw])
            of_draw[draw] = clipped_log_eta_max(cells[rows], rates)
    return np.array([of_draw[draw] for draw in draws])


def rank_correlation(rows: dict[str, dict], lag: int) -> dict:
    """Spearman's, over the trained corrections: relative bias at LARGE, synchronous path, with eta_max at one S."""
    both = [row for row in rows.values() if "relative_bias" in row and "eta_max" in row]
    bias = [row["relative_bias"]["synchronous"][f"{LARGE:g}"]["mean"] for row in both]
    found = spearmanr(bias, [row["eta_max"][str(lag)] for row in both]).statistic if len(both) > 2 else None
    return {"spearman": found, "n": len(both)}


def comparable(config: ConfigDict, rows: dict[str, dict]) -> list[str]:
    """Corrections whose bias is against the same H_sync as the baseline's: none that fixes another normalization."""
    surrogate = config.surrogate.to_dict()
    same = surrogate_of(BASELINE, surrogate)
    return [name for name, row in rows.items() if "relative_bias" in row and surrogate_of(name, surrogate) == same]


def claims(config: ConfigDict, rows: dict[str, dict]) -> list[dict]:
    """What was asked of the corrections."""
    lag = str(max(config.stability.sweep.max_lags))
    better = [
        name
        for name, row in rows.items()
        if row.get("eta_max_over_baseline", {}).get(lag, {"interval": [0]})["interval"][0] > 1
    ]
    n = len(config.stability.sweep.seeds)
    found = [
        (
            f"two corrections or more have a higher stable learning rate than {BASELINE} at S = {lag}: "
            f"{', '.join(better) or 'none'}",
            len(better), None, n, len(better) >= 2,
        )
    ]  # fmt: skip
    zero = [name for name, row in rows.items() if "offset" in row and row["offset"]["mean"] < 1e-12]
    counted = [name for name, row in rows.items() if "offset" in row]
    found.append(
        (
            "every correction is GRPO's gradient at lag 0 (those that are not: "
            f"{', '.join(sorted(set(counted) - set(zero))) or 'none'})",
            len(zero), None, len(counted), len(zero) == len(counted),
        )
    )  # fmt: skip
    for s_eta in (SMALL, LARGE):
        value = {name: rows[name]["relative_bias"]["synchronous"][f"{s_eta:g}"] for name in comparable(config, rows)}
        best = min(value, key=lambda name: value[name]["mean"])
        below = value[best]["interval"][1] < value[BASELINE]["interval"][0]
        found.append(
            (
                f"some correction has less relative bias than {BASELINE} at S eta = {s_eta:.3g}, synchronous path, "
                f"beyond both intervals: least is {best}, {BASELINE} has {value[BASELINE]['mean']:.3g}",
                value[best]["mean"], value[best]["interval"], value[best]["n"], below,
            )
        )  # fmt: skip
    names = ("claim", "measured", "interval", "n", "holds")
    return [dict(zip(names, row, strict=True)) | {"command": COMMAND} for row in found]


def reading(config: ConfigDict, rows: dict[str, dict]) -> str:
    """What the numbers say to somebody who has to choose, and what they leave open."""
    lags = [str(lag) for lag in config.stability.sweep.max_lags]

    def named(names):
        return ", ".join(names) or "none"

    def least(s_eta, path):
        values = {name: rows[name]["relative_bias"][path][f"{s_eta:g}"] for name in comparable(config, rows)}
        best = min(values, key=lambda name: values[name]["mean"])
        return named(
            name for name in values if values[name]["interval"][0] <= values[best]["interval"][1]
        )  # no worse than the best, by intervals

    apart = [name for name, row in rows.items() if "relative_bias" in row and name not in comparable(config, rows)]
    sentences = [
        f"Least bias before anything is clipped (S eta = {SMALL:.3g}, synchronous path, all whose interval meets the "
        f"best's): {least(SMALL, 'synchronous')}. After clipping has set in (S eta = {LARGE:.3g}): "
        f"{least(LARGE, 'synchronous')}. Not ranked with them, since their H_sync has another normalization: "
        f"{named(apart)}."
    ]
    for lag in lags:
        ratios = {
            name: row["eta_max_over_baseline"][lag] for name, row in rows.items()
            if "eta_max_over_baseline" in row and name != BASELINE
        }  # fmt: skip
        sentences.append(
            f"At S = {lag} a higher stable learning rate than {BASELINE}, beyond the seeds' interval: "
            f"{named(name for name, found in ratios.items() if found['interval'][0] > 1)}; a lower one: "
            f"{named(name for name, found in ratios.items() if found['interval'][1] < 1)}."
        )
        rank = rank_correlation(rows, lag)
        if rank["spearman"] is not None:
            sentences.append(
                f"Rank correlation of the bias at S eta = {LARGE:.3g} with that learning rate, over {rank['n']} "
                f"corrections: {rank['spearman']:.2f}; -1 would mean that less bias is more stability."
            )
    sentences.append(
        f"Not settled: anything between, with {len(config.stability.sweep.seeds)} seeds; other tasks and longer "
        f"responses, where sequence-level weights spread much more; corrections whose published parameters are made "
        f"for long responses (gspo's clip range of 3e-4 cuts nearly every response here)."
    )
    return " ".join(sentences)
