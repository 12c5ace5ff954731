"""States the findings on the corrections, and how to read them when choosing a correction.

The paper predicts nothing about corrections, so every finding has `holds` None.

The criterion for "a higher stable learning rate" was fixed before the trainings were run: at one S,
the interval of eta_max / (eta_max of the baseline) lies above 1. Both are resampled with the same
seeds.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from experiments.common.claims import Claim
from experiments.corrections.analysis import (
    S_ETA_AFTER_CLIPPING,
    S_ETA_BEFORE_CLIPPING,
    comparable_corrections,
)
from experiments.corrections.stability import BASELINE

COMMAND = "python -m experiments.corrections --workdir=DIR"
ROUNDING = 1e-12  # relative distances below this are rounding errors of sums in float64


def claims(config: ConfigDict, summary: dict[str, Any]) -> list[Claim]:
    """Returns the findings on stability, on lag 0 and on the least bias."""
    rows = summary["corrections"]
    return [
        _more_stable(config, rows),
        _grpo_at_lag_0(rows),
        _least_bias("before_clipping", S_ETA_BEFORE_CLIPPING, config, rows),
        _least_bias("after_clipping", S_ETA_AFTER_CLIPPING, config, rows),
    ]


def _more_stable(config: ConfigDict, rows: dict[str, dict]) -> Claim:
    sweep = config.stability.sweep
    lag = max(sweep.max_lags)
    others, better = _eta_max_ratios(rows, str(lag)), more_stable(rows, str(lag))
    num_cells = (len(others) + 1) * len(sweep.learning_rates) * len(sweep.seeds)
    return Claim(
        name="more_stable_than_baseline",
        claim=f"At S = {lag}, beyond the seeds' interval, this many of {len(others)} methods have "
        f"a higher stable learning rate than {BASELINE}: {comma_separated(better)}",
        measured=len(better),
        interval=None,
        n=len(sweep.seeds),
        unit="seeds",
        holds=None,
        note=f"{num_cells} cells at this S.",
        command=COMMAND,
    )


def _grpo_at_lag_0(rows: dict[str, dict]) -> Claim:
    offsets = {name: row["offset"] for name, row in rows.items() if "offset" in row}
    others = [name for name, offset in offsets.items() if not offset["mean"] < ROUNDING]
    return Claim(
        name="grpo_at_lag_0",
        claim=f"At lag 0 this many of {len(offsets)} corrections have GRPO's gradient. "
        f"Those that have not: {comma_separated(sorted(others))}",
        measured=len(offsets) - len(others),
        interval=None,
        n=offsets[BASELINE]["n"],
        unit="problems",
        holds=None,
        note=f"A relative distance below {ROUNDING:g} in the mean counts as rounding.",
        command=COMMAND,
    )


def _least_bias(name: str, s_eta: float, config: ConfigDict, rows: dict[str, dict]) -> Claim:
    values = {
        correction: rows[correction]["relative_bias"]["synchronous"][f"{s_eta:g}"]
        for correction in comparable_corrections(config, rows)
    }
    best = min(values, key=lambda correction: values[correction]["mean"])
    base = values[BASELINE]
    is_separate = values[best]["interval"][1] < base["interval"][0]
    low, high = base["interval"]
    return Claim(
        name=f"least_bias_{name}",
        claim=f"At S eta = {s_eta:.3g} on the synchronous path {best} has the least relative bias.",
        measured=values[best]["mean"],
        interval=values[best]["interval"],
        n=values[best]["n"],
        unit="problems",
        holds=None,
        note=f"{BASELINE} has {base['mean']:.3g} [{low:.3g}, {high:.3g}]; "
        f"the intervals {'do not overlap' if is_separate else 'overlap'}.",
        command=COMMAND,
    )


def reading(config: ConfigDict, summary: dict[str, Any]) -> str:
    """Says how to choose a correction from the numbers, and which questions they leave open."""
    rows = summary["corrections"]
    ranked = comparable_corrections(config, rows)
    not_ranked = [
        name for name, row in rows.items() if "relative_bias" in row and name not in ranked
    ]
    before, after = (
        least_biased(rows, ranked, s_eta) for s_eta in (S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING)
    )
    sentences = [
        f"Least bias before anything is clipped (S eta = {S_ETA_BEFORE_CLIPPING:.3g}, synchronous "
        f"path, all whose interval meets the best's): {comma_separated(before)}.",
        f"After clipping has set in (S eta = {S_ETA_AFTER_CLIPPING:.3g}): "
        f"{comma_separated(after)}.",
        f"Not ranked with them, since their H_sync has another normalization: "
        f"{comma_separated(not_ranked)}.",
    ]
    for lag in map(str, config.stability.sweep.max_lags):
        sentences.append(
            f"At S = {lag} a higher stable learning rate than {BASELINE}, beyond the seeds' "
            f"interval: {comma_separated(more_stable(rows, lag))}; "
            f"a lower one: {comma_separated(less_stable(rows, lag))}."
        )
        correlation = summary["bias_and_stability"][lag]
        if correlation["spearman"] is not None:
            sentences.append(
                f"Rank correlation of the bias at S eta = {S_ETA_AFTER_CLIPPING:.3g} with that "
                f"learning rate, over {correlation['n']} corrections: "
                f"{correlation['spearman']:.2f}; -1 would mean that less bias is more stability."
            )
    sentences.append(
        f"Not settled: anything between, with {len(config.stability.sweep.seeds)} seeds; other "
        f"tasks and longer responses, where sequence-level weights spread much more; corrections "
        f"whose published parameters are made for long responses (gspo's clip range of 3e-4 cuts "
        f"nearly every response here)."
    )
    return " ".join(sentences)


def comma_separated(names: Iterable[str]) -> str:
    """Returns the names, separated by commas, or "none" if there are none."""
    return ", ".join(names) or "none"


def more_stable(rows: dict[str, dict], lag: str) -> list[str]:
    """Returns the methods for which the interval of eta_max / baseline's eta_max lies above 1."""
    return [name for name, ratio in _eta_max_ratios(rows, lag).items() if ratio["interval"][0] > 1]


def less_stable(rows: dict[str, dict], lag: str) -> list[str]:
    """Returns the methods for which the interval of eta_max / baseline's eta_max lies below 1."""
    return [name for name, ratio in _eta_max_ratios(rows, lag).items() if ratio["interval"][1] < 1]


def least_biased(rows: dict[str, dict], ranked: list[str], s_eta: float) -> list[str]:
    """Returns the corrections of `ranked` that may have the least relative bias.

    Their interval begins at or below the upper end of the interval of the least biased one.
    """
    values = {name: rows[name]["relative_bias"]["synchronous"][f"{s_eta:g}"] for name in ranked}
    best = min(values, key=lambda name: values[name]["mean"])
    limit = values[best]["interval"][1]
    return [name for name, value in values.items() if value["interval"][0] <= limit]


def _eta_max_ratios(rows: dict[str, dict], lag: str) -> dict[str, dict]:
    return {
        name: row["eta_max_over_baseline"][lag]
        for name, row in rows.items()
        if "eta_max_over_baseline" in row and name != BASELINE
    }
