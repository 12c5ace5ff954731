"""The findings on the corrections, and what they say to somebody who has to choose.

The paper says nothing of corrections, so nothing here holds or does not. What counts as a higher
stable learning rate was fixed before the trainings were run: at one S, the interval of
eta_max / eta_max of the baseline, seeds resampled jointly, lies above 1.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from experiments.common.claims import Claim
from experiments.corrections.analysis import (
    S_ETA_AFTER_CLIPPING,
    S_ETA_BEFORE_CLIPPING,
    comparable,
)
from experiments.corrections.stability import BASELINE

COMMAND = "python -m experiments.corrections --workdir=DIR"
ROUNDING = 1e-12  # relative, of a sum in float64


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
    others, better = _ratios(rows, str(lag)), higher(rows, str(lag))
    cells = (len(others) + 1) * len(sweep.learning_rates) * len(sweep.seeds)
    return Claim(
        name="more_stable_than_baseline",
        claim=f"At S = {lag}, beyond the seeds' interval, this many of {len(others)} methods have "
        f"a higher stable learning rate than {BASELINE}: {named(better)}",
        measured=len(better),
        interval=None,
        n=len(sweep.seeds),
        unit="seeds",
        holds=None,
        note=f"{cells} cells at this S.",
        command=COMMAND,
    )


def _grpo_at_lag_0(rows: dict[str, dict]) -> Claim:
    offsets = {name: row["offset"] for name, row in rows.items() if "offset" in row}
    others = [name for name, offset in offsets.items() if not offset["mean"] < ROUNDING]
    return Claim(
        name="grpo_at_lag_0",
        claim=f"At lag 0 this many of {len(offsets)} corrections have GRPO's gradient. "
        f"Those that have not: {named(sorted(others))}",
        measured=len(offsets) - len(others),
        interval=None,
        n=offsets[BASELINE]["n"],
        unit="problems",
        holds=None,
        note=f"A relative distance below {ROUNDING:g} in the mean counts as rounding.",
        command=COMMAND,
    )


def _least_bias(name: str, s_eta: float, config: ConfigDict, rows: dict[str, dict]) -> Claim:
    value = {
        correction: rows[correction]["relative_bias"]["synchronous"][f"{s_eta:g}"]
        for correction in comparable(config, rows)
    }
    best = min(value, key=lambda correction: value[correction]["mean"])
    base = value[BASELINE]
    below = value[best]["interval"][1] < base["interval"][0]
    low, high = base["interval"]
    return Claim(
        name=f"least_bias_{name}",
        claim=f"At S eta = {s_eta:.3g} on the synchronous path {best} has the least relative bias.",
        measured=value[best]["mean"],
        interval=value[best]["interval"],
        n=value[best]["n"],
        unit="problems",
        holds=None,
        note=f"{BASELINE} has {base['mean']:.3g} [{low:.3g}, {high:.3g}]; "
        f"the intervals {'do not overlap' if below else 'overlap'}.",
        command=COMMAND,
    )


def reading(config: ConfigDict, summary: dict[str, Any]) -> str:
    """Says what the numbers mean to somebody who has to choose, and what they leave open."""
    rows = summary["corrections"]
    ranked = comparable(config, rows)
    apart = [name for name, row in rows.items() if "relative_bias" in row and name not in ranked]
    before, after = (
        least_biased(rows, ranked, s_eta) for s_eta in (S_ETA_BEFORE_CLIPPING, S_ETA_AFTER_CLIPPING)
    )
    sentences = [
        f"Least bias before anything is clipped (S eta = {S_ETA_BEFORE_CLIPPING:.3g}, synchronous "
        f"path, all whose interval meets the best's): {named(before)}.",
        f"After clipping has set in (S eta = {S_ETA_AFTER_CLIPPING:.3g}): {named(after)}.",
        f"Not ranked with them, since their H_sync has another normalization: {named(apart)}.",
    ]
    for lag in map(str, config.stability.sweep.max_lags):
        sentences.append(
            f"At S = {lag} a higher stable learning rate than {BASELINE}, beyond the seeds' "
            f"interval: {named(higher(rows, lag))}; a lower one: {named(lower(rows, lag))}."
        )
        rank = summary["bias_and_stability"][lag]
        if rank["spearman"] is not None:
            sentences.append(
                f"Rank correlation of the bias at S eta = {S_ETA_AFTER_CLIPPING:.3g} with that "
                f"learning rate, over {rank['n']} corrections: {rank['spearman']:.2f}; "
                f"-1 would mean that less bias is more stability."
            )
    sentences.append(
        f"Not settled: anything between, with {len(config.stability.sweep.seeds)} seeds; other "
        f"tasks and longer responses, where sequence-level weights spread much more; corrections "
        f"whose published parameters are made for long responses (gspo's clip range of 3e-4 cuts "
        f"nearly every response here)."
    )
    return " ".join(sentences)


def named(names: Iterable[str]) -> str:
    """Returns names as a list for people."""
    return ", ".join(names) or "none"


def higher(rows: dict[str, dict], lag: str) -> list[str]:
    """Returns the methods whose stable learning rate is higher than the baseline's, by interval."""
    return [name for name, ratio in _ratios(rows, lag).items() if ratio["interval"][0] > 1]


def lower(rows: dict[str, dict], lag: str) -> list[str]:
    """Returns the methods whose stable learning rate is lower than the baseline's, by interval."""
    return [name for name, ratio in _ratios(rows, lag).items() if ratio["interval"][1] < 1]


def least_biased(rows: dict[str, dict], ranked: list[str], s_eta: float) -> list[str]:
    """Returns the corrections that are no worse than the least biased, by their intervals."""
    values = {name: rows[name]["relative_bias"]["synchronous"][f"{s_eta:g}"] for name in ranked}
    best = min(values, key=lambda name: values[name]["mean"])
    limit = values[best]["interval"][1]
    return [name for name, value in values.items() if value["interval"][0] <= limit]


def _ratios(rows: dict[str, dict], lag: str) -> dict[str, dict]:
    return {
        name: row["eta_max_over_baseline"][lag]
        for name, row in rows.items()
        if "eta_max_over_baseline" in row and name != BASELINE
    }
