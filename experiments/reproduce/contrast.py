"""Compares trainings of the map that differ in their lag alone, over all seeds of the map."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.common.claims import Claim
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.scaling.bootstrap import group_interval

RESAMPLES = 2000
# (trace of cells.jsonl, what it is called)
PANELS = {
    "eval_reward": "reward of the current policy",
    "drift_from_start": "drift from the start",
    "entropy": "entropy (nats)",
    "clip_fraction": "clip fraction",
    "log_ratio_second_moment": "mean of (log ratio)^2",
    "gradient_cosine": "cosine of consecutive gradients",
}

Pair = dict[int, list[dict]]  # the lag -> its cells, by seed


def pair_of_lags(cells_file: pathlib.Path, max_lag: int, learning_rate: float) -> Pair:
    """Returns the cells at S = 0 and at `max_lag` with this learning rate, by seed.

    Raises:
      ValueError: the map has no such cells, or not for the same seeds.
    """
    records = [r for r in read_jsonl(cells_file) if r["learning_rate"] == learning_rate]
    pair = {
        lag: sorted((r for r in records if r["max_lag"] == lag), key=lambda r: r["seed"])
        for lag in (0, max_lag)
    }
    seeds = [[r["seed"] for r in cells] for cells in pair.values()]
    if not seeds[0] or seeds[0] != seeds[1]:
        raise ValueError(
            f"{cells_file} has no pairs of cells at lags 0 and {max_lag}, eta = {learning_rate}"
        )
    return pair


def claims(pair: Pair, learning_rate: float, command: str) -> list[Claim]:
    """Returns what the pair says: rewards at both lags, their difference, and who collapses."""
    lag = max(pair)
    seeds = np.arange(len(pair[0]))
    final = {s: np.array([r["final"] for r in cells]) for s, cells in pair.items()}
    first = np.array([r["first"] for r in pair[0]])
    collapsed = {s: sum(r["collapse_step"] is not None for r in c) for s, c in pair.items()}

    def interval(values: np.ndarray) -> list[float]:
        low, high = group_interval(seeds, lambda rows: values[rows].mean(), RESAMPLES)
        return [float(low), float(high)]

    risen, lost = interval(final[0] - first), interval(final[0] - final[lag])
    common: dict[str, Any] = dict(n=len(seeds), unit="seeds", command=command)
    return [
        Claim(
            name="reward_rises_without_lag",
            claim=f"S = 0, eta = {learning_rate:g}: the pass rate rises by this much",
            measured=float((final[0] - first).mean()),
            interval=risen,
            holds=risen[0] > 0,
            note=f"from {first.mean():.2f} to {final[0].mean():.2f}",
            **common,
        ),
        Claim(
            name="lag_costs_reward",
            claim=f"At this learning rate a lag of {lag} costs this much final pass rate",
            measured=float((final[0] - final[lag]).mean()),
            interval=lost,
            holds=lost[0] > 0,
            note=f"final pass rate {final[0].mean():.2f} at S = 0, {final[lag].mean():.2f} at "
            f"S = {lag}; same warm starts, prompts and noise in each pair",
            **common,
        ),
        Claim(
            name="lag_makes_runs_collapse",
            claim=f"Runs that collapse at S = 0, and at S = {lag}",
            measured=[collapsed[0], collapsed[lag]],
            interval=None,
            holds=collapsed[lag] > collapsed[0],
            **common,
        ),
    ]


def draw(pair: Pair, path: pathlib.Path) -> pathlib.Path:
    """Draws the traces of both lags: the mean over seeds, and their range. Returns the PNG."""
    with style.context():
        figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex=True)
        for (lag, cells), color in zip(pair.items(), style.COLORS, strict=False):
            for axis, (trace, title) in zip(axes.flat, PANELS.items(), strict=True):
                longest = max(len(r["traces"][trace]) for r in cells)
                # A run that was frozen after its collapse has no values there.
                values = np.full((len(cells), longest), np.nan)
                for row, record in zip(values, cells, strict=True):
                    found = np.array(record["traces"][trace], float)
                    row[: len(found)] = found
                steps = cells[0]["trace_every"] * np.arange(longest)
                axis.fill_between(
                    steps,
                    np.nanmin(values, axis=0),
                    np.nanmax(values, axis=0),
                    color=color,
                    alpha=0.2,
                    linewidth=0,
                )
                axis.plot(steps, np.nanmean(values, axis=0), color=color, label=f"S = {lag}")
                axis.set_title(title)
        axes[0, 0].legend()
        axes[0, 0].set_ylim(0, 1)
        for axis in axes[1]:
            axis.set_xlabel("learner step")
        return style.save(figure, path)
