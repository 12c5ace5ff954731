"""The figures of the corrections, from summary.json alone; a gap in it raises."""

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
PATH_LABELS = {"synchronous": "synchronous path", "own": "own lagged path"}


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the three figures into a finished folder; returns the PNGs."""
    summary = read_json(workdir / SUMMARY)
    with style.context():
        return [
            style.save(bias_figure(summary), workdir / "corrections_bias"),
            style.save(tradeoff_figure(summary), workdir / "corrections_tradeoff"),
            style.save(stability_figure(summary), workdir / "corrections_stability"),
        ]


def family(name: str) -> str:
    """Returns the family of a correction of the loss: the module that it is defined in."""
    objective = registry.CORRECTIONS[name].token_objective
    objective = getattr(objective, "func", objective)
    return next(
        label for label, module in FAMILIES.items() if objective.__module__ == module.__name__
    )


def wrapped(names: list[str]) -> str:
    """Returns names in lines of a width that fits into a panel."""
    return textwrap.fill(", ".join(names), 36)


def curve(row: dict, quantity: str, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns S * eta [n], mean [n] and interval [2, n] of a quantity."""
    by_s_eta = row[quantity][path]
    x = np.array([float(key) for key in by_s_eta])
    mean = np.array([value["mean"] for value in by_s_eta.values()])
    return x, mean, np.array([value["interval"] for value in by_s_eta.values()]).T


def bias_figure(summary: dict) -> plt.Figure:
    """Draws relative bias and cosine against S * eta.

    There is one column for each family. The baseline is black in all of them.
    """
    rows = {name: row for name, row in summary["corrections"].items() if "relative_bias" in row}
    panels = [("relative_bias", "synchronous"), ("relative_bias", "own"), ("cosine", "own")]
    figure, axes = plt.subplots(
        3, 3, figsize=(10, 9), sharex=True, sharey="row", layout="constrained"
    )
    for column, label in enumerate(FAMILIES):
        inside = [name for name in rows if family(name) == label and name != BASELINE]
        # Corrections whose gradients agree at every S * eta share a line.
        shared: dict[tuple, list[str]] = {}
        for name in inside:
            key = tuple(
                f"{value:.6g}" for value in curve(rows[name], "relative_bias", "synchronous")[1]
            )
            shared.setdefault(key, []).append(name)
        colors = plt.get_cmap("tab10")
        for i, names in enumerate(shared.values()):
            for axis, (quantity, path) in zip(axes[:, column], panels, strict=True):
                x, mean, interval = curve(rows[names[0]], quantity, path)
                axis.plot(x, mean, color=colors(i), label=wrapped(names))
                axis.fill_between(x, *interval, color=colors(i), alpha=0.12, linewidth=0)
        for axis, (quantity, path) in zip(axes[:, column], panels, strict=True):
            x, mean, _ = curve(rows[BASELINE], quantity, path)
            axis.plot(x, mean, color="black", linestyle="--", label=BASELINE)
            axis.set_xscale("log", base=2)
            if quantity == "relative_bias":
                axis.set_yscale("log")
        axes[0, column].set_title(label)
        axes[-1, column].set_xlabel(r"$S\,\eta$")
        axes[0, column].legend(loc="lower right", fontsize=6)
    labels = {"relative_bias": "relative bias", "cosine": "cosine with H_sync"}
    for axis, (quantity, path) in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(f"{labels[quantity]}, {PATH_LABELS[path]}")
    return figure


def tradeoff_figure(summary: dict) -> plt.Figure:
    """Draws relative bias and variance at a stale pair of policies, a row for each correction."""
    s_eta = f"{summary['s_eta'][1]:g}"
    rows = {name: row for name, row in summary["corrections"].items() if "relative_bias" in row}
    order = sorted(
        rows, key=lambda name: -rows[name]["relative_bias"]["synchronous"][s_eta]["mean"]
    )
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 5.4), sharey=True, layout="constrained")
    for place, name in enumerate(order):
        color = style.COLORS[list(FAMILIES).index(family(name))]
        values = rows[name]["relative_bias"]["synchronous"][s_eta], rows[name]["variance_ratio"]
        for axis, value in zip(axes, values, strict=True):
            low, high = value["interval"]
            axis.plot([low, high], [place, place], color=color, linewidth=0.8)
            axis.plot(value["mean"], place, color=color, marker="o")
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
    """Draws eta_max over the baseline's at each S, and the final reward at its boundary.

    Intervals are over seeds.
    """
    rows = {name: row for name, row in summary["corrections"].items() if "eta_max" in row}
    lags = list(next(iter(rows.values()))["eta_max"])
    order = sorted(rows, key=lambda name: rows[name]["eta_max_over_baseline"][lags[-1]]["ratio"])
    height = 1.2 + 0.22 * len(order)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, height), sharey=True, layout="constrained"
    )
    places = np.arange(len(order))
    for i, lag in enumerate(lags):
        shift = places + 0.18 * (i - (len(lags) - 1) / 2)
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
                shift,
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
    left.set_yticks(places, order)
    left.legend()
    right.set(xlabel=f"final pass rate at the boundary of {BASELINE}", xlim=(0, 1))
    return figure
