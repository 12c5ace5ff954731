"""Draws the figures of the corrections from summary.json alone.

A number that is missing in summary.json raises KeyError.
"""

import pathlib
import textwrap

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.common.workdir import SUMMARY
from experiments.corrections.stability import BASELINE
from staleness_grpo.objective.corrections import clipped, masked, registry, weighted
from staleness_grpo.runtime.records import read_json

FAMILIES = {"clipped": clipped, "weighted": weighted, "masked": masked}
TRAJECTORY_LABELS = {"synchronous": "synchronous path", "own": "own lagged path"}


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the three figures into a finished workdir; returns the paths of the PNG files."""
    summary = read_json(workdir / SUMMARY)
    with style.context():
        return [
            style.save(bias_figure(summary), workdir / "corrections_bias"),
            style.save(tradeoff_figure(summary), workdir / "corrections_tradeoff"),
            style.save(stability_figure(summary), workdir / "corrections_stability"),
        ]


def family(name: str) -> str:
    """Returns the family of a correction: the name of the module that defines it."""
    function = registry.CORRECTIONS[name].token_objective
    function = getattr(function, "func", function)  # the function inside a functools.partial
    return next(
        label for label, module in FAMILIES.items() if function.__module__ == module.__name__
    )


def legend_label(names: list[str]) -> str:
    """Returns the names, separated by commas, in lines short enough for a panel's legend."""
    return textwrap.fill(", ".join(names), 36)


def curve(row: dict, quantity: str, trajectory: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns S * eta [n], and the mean [n] and interval [2, n] of a quantity at each."""
    by_s_eta = row[quantity][trajectory]
    x = np.array([float(key) for key in by_s_eta])
    mean = np.array([value["mean"] for value in by_s_eta.values()])
    return x, mean, np.array([value["interval"] for value in by_s_eta.values()]).T


def bias_figure(summary: dict) -> plt.Figure:
    """Draws relative bias and cosine against S * eta.

    Each family of corrections has a column. The baseline is drawn in black in every column.
    """
    rows = {name: row for name, row in summary["corrections"].items() if "relative_bias" in row}
    panels = [("relative_bias", "synchronous"), ("relative_bias", "own"), ("cosine", "own")]
    figure, axes = plt.subplots(
        3, 3, figsize=(10, 9), sharex=True, sharey="row", layout="constrained"
    )
    for column, label in enumerate(FAMILIES):
        members = [name for name in rows if family(name) == label and name != BASELINE]
        # Corrections with the same curve share one line.
        names_of_curve: dict[tuple, list[str]] = {}
        for name in members:
            key = tuple(
                f"{value:.6g}" for value in curve(rows[name], "relative_bias", "synchronous")[1]
            )
            names_of_curve.setdefault(key, []).append(name)
        colors = plt.get_cmap("tab10" if len(names_of_curve) <= 10 else "tab20")
        for i, names in enumerate(names_of_curve.values()):
            for axis, (quantity, trajectory) in zip(axes[:, column], panels, strict=True):
                x, mean, interval = curve(rows[names[0]], quantity, trajectory)
                axis.plot(x, mean, color=colors(i), label=legend_label(names))
                axis.fill_between(x, *interval, color=colors(i), alpha=0.12, linewidth=0)
        for axis, (quantity, trajectory) in zip(axes[:, column], panels, strict=True):
            x, mean, _ = curve(rows[BASELINE], quantity, trajectory)
            axis.plot(x, mean, color="black", linestyle="--", label=BASELINE)
            axis.set_xscale("log", base=2)
            if quantity == "relative_bias":
                axis.set_yscale("log")
        axes[0, column].set_title(label)
        axes[-1, column].set_xlabel(r"$S\,\eta$")
        axes[0, column].legend(loc="lower right", fontsize=6)
    labels = {"relative_bias": "relative bias", "cosine": "cosine with H_sync"}
    for axis, (quantity, trajectory) in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(f"{labels[quantity]}, {TRAJECTORY_LABELS[trajectory]}")
    return figure


def tradeoff_figure(summary: dict) -> plt.Figure:
    """Draws the relative bias and the variance ratio, with a row for each correction."""
    s_eta = f"{summary['s_eta'][1]:g}"
    rows = {name: row for name, row in summary["corrections"].items() if "relative_bias" in row}
    order = sorted(
        rows, key=lambda name: -rows[name]["relative_bias"]["synchronous"][s_eta]["mean"]
    )
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 5.4), sharey=True, layout="constrained")
    for row_index, name in enumerate(order):
        color = style.COLORS[list(FAMILIES).index(family(name))]
        values = rows[name]["relative_bias"]["synchronous"][s_eta], rows[name]["variance_ratio"]
        for axis, value in zip(axes, values, strict=True):
            low, high = value["interval"]
            axis.plot([low, high], [row_index, row_index], color=color, linewidth=0.8)
            axis.plot(value["mean"], row_index, color=color, marker="o")
    handles = [
        plt.Line2D([], [], color=color, marker="o", linestyle="", label=label)
        for label, color in zip(FAMILIES, style.COLORS, strict=False)
    ]
    axes[0].legend(handles=handles, loc="lower left")
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set(
        xscale="log", xlabel=rf"relative bias at $S\,\eta$ = {float(s_eta):g}, synchronous path"
    )
    axes[1].set(xscale="log", xlabel=f"variance of a batch's gradient / that of {BASELINE}")
    axes[1].axvline(1, color="black", linewidth=0.8)
    axes[1].set_xticks([0.4, 0.6, 0.8, 1, 1.5, 2], ["0.4", "0.6", "0.8", "1", "1.5", "2"])
    axes[1].minorticks_off()
    return figure


def stability_figure(summary: dict) -> plt.Figure:
    """Draws eta_max / (eta_max of the baseline) at each S, and the final reward.

    The final reward is taken at the baseline's boundary. Intervals resample seeds.
    """
    rows = {name: row for name, row in summary["corrections"].items() if "eta_max" in row}
    lags = list(next(iter(rows.values()))["eta_max"])
    order = sorted(rows, key=lambda name: rows[name]["eta_max_over_baseline"][lags[-1]]["ratio"])
    height = 1.2 + 0.22 * len(order)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, height), sharey=True, layout="constrained"
    )
    row_indices = np.arange(len(order))
    for i, lag in enumerate(lags):
        shifted = row_indices + 0.18 * (i - (len(lags) - 1) / 2)
        for axis, quantity, center in (
            (left, "eta_max_over_baseline", "ratio"),
            (right, "final_reward", "mean"),
        ):
            values = [rows[name][quantity][lag] for name in order]
            x = np.array([value[center] for value in values])
            error = np.clip(
                np.abs(np.array([value["interval"] for value in values]).T - x), 0, None
            )
            axis.errorbar(
                x,
                shifted,
                xerr=error,
                fmt="o",
                color=style.COLORS[i],
                markersize=4,
                linewidth=0.8,
                label=f"S = {lag}",
            )
    left.axvline(1, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel=rf"$\eta_{{\max}}$ / that of {BASELINE}")
    left.set_xticks([0.5, 0.7, 1, 1.4, 2, 2.8], ["0.5", "0.7", "1", "1.4", "2", "2.8"])
    left.minorticks_off()
    left.set_yticks(row_indices, order)
    left.legend()
    right.set(xlabel=f"final pass rate at the boundary of {BASELINE}", xlim=(0, 1))
    return figure
