"""Paired bias during training: reward by lag, and the bias against S, S eta and drift; from cells.jsonl alone."""

import pathlib

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.common import style
from staleness_grpo.runtime.records import read_jsonl


def draw(workdir: pathlib.Path) -> pathlib.Path:
    """Draws paired_bias.png and .pdf into the folder; returns the PNG."""
    cells = read_jsonl(workdir / "cells.jsonl")
    rates = sorted({cell["learning_rate"] for cell in cells})
    lags = sorted({cell["max_lag"] for cell in cells})
    stale = [cell for cell in cells if cell["max_lag"] > 0]
    with style.context():
        figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
        reward = axes[0, 0]
        for cell in cells:
            if cell["learning_rate"] == rates[-1]:
                color = lag_color(cell["max_lag"], lags)
                reward.plot(
                    cell["eval_steps"],
                    cell["eval_rewards"],
                    color=color,
                    label=f"S = {cell['max_lag']}",
                )
        reward.set(
            xlabel="learner step",
            ylabel="reward of the current policy",
            title=rf"reward, $\eta$ = {rates[-1]:g}",
        )
        if any(cell["eval_steps"] for cell in cells):
            reward.legend(ncols=2)
        panels = (
            (axes[0, 1], "max_lag", "bias_norm", "lag S (optimizer updates)", "bias norm"),
            (axes[0, 2], "max_lag", "relative_bias", "lag S (optimizer updates)", "relative bias"),
            (
                axes[1, 0],
                "max_lag",
                "cosine",
                "lag S (optimizer updates)",
                "cosine of stale with fresh gradient",
            ),
            (axes[1, 1], "s_eta", "bias_norm", r"S $\eta$", "bias norm"),
            (axes[1, 2], "drift", "bias_norm", "drift from the behavior policy", "bias norm"),
        )
        for axis, x, y, x_label, y_label in panels:
            shown = [cell for cell in stale if cell[x] is not None and cell[y] is not None]
            for rate, color in zip(rates, style.COLORS, strict=False):
                inside = sorted(
                    (cell for cell in shown if cell["learning_rate"] == rate),
                    key=lambda cell: cell[x],
                )
                errorbars(axis, inside, x, y, color, rf"$\eta$ = {rate:g}")
            axis.set(xlabel=x_label, ylabel=y_label, xscale="log" if shown else "linear")
            if y != "cosine" and any(cell[y] > 0 for cell in shown):
                axis.set_yscale("log")
            if x != "max_lag" and any(cell[y] > 0 for cell in shown):
                slope_one(axis, shown, x, y)
        axes[0, 1].legend()
        axes[1, 0].axhline(1, color="0.7", linewidth=0.8, zorder=0)
        for axis in (axes[0, 1], axes[0, 2], axes[1, 0]):
            axis.xaxis.set_major_locator(
                matplotlib.ticker.FixedLocator([lag for lag in lags if lag])
            )
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        for ticks in (
            axes[0, 1].yaxis,
            axes[0, 2].yaxis,
            *(t for axis in axes[1, 1:] for t in (axis.xaxis, axis.yaxis)),
        ):
            if ticks.get_scale() == "log":
                low, high = ticks.get_view_interval()
                ticks.set_major_locator(
                    matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,))
                )
                ticks.set_major_formatter("{x:g}")
                ticks.set_minor_formatter(matplotlib.ticker.NullFormatter())
    return style.save(figure, workdir / "paired_bias")


def errorbars(axis, cells: list[dict], x: str, y: str, color: str, label: str) -> None:
    """Estimates with their intervals, an infinite bound (null in the records) as an arrow to the edge.

    A norm whose estimate is 0 has no place on a log axis: its upper bound, as v.
    """
    for cell in cells:
        low, high = cell[f"{y}_interval"]
        if low is None and high is None:  # there is no interval
            continue
        ends = [cell[y] if bound is None else bound for bound in (low, high)]
        axis.plot([cell[x]] * 2, ends, color=color, linewidth=1)
        if cell[y] == 0:
            axis.plot(cell[x], ends[1], "v", color=color, markersize=4, markerfacecolor="none")
            continue
        for bound, edge in ((low, 0), (high, 1)):
            if bound is None:
                arrow = dict(arrowstyle="->", color=color, linewidth=1, shrinkA=0, shrinkB=0)
                axis.annotate(
                    "",
                    (cell[x], edge),
                    (cell[x], cell[y]),
                    ("data", "axes fraction"),
                    "data",
                    arrow,
                )
    values = np.array([cell[y] if cell[y] != 0 else np.nan for cell in cells])
    axis.plot(
        [cell[x] for cell in cells],
        values,
        "o-",
        color=color,
        label=label,
        markersize=4,
        linewidth=1,
    )


def slope_one(axis, cells: list[dict], x: str, y: str) -> None:
    """The line y proportional to x through the cells' geometric middle."""
    positive = [cell for cell in cells if cell[y] > 0]
    xs = np.array([cell[x] for cell in positive])
    middle = np.exp(np.mean(np.log([cell[y] for cell in positive]) - np.log(xs)))
    ends = np.array([xs.min(), xs.max()])
    axis.plot(
        ends, middle * ends, color="0.6", linestyle="--", linewidth=1, zorder=0, label="slope 1"
    )
    axis.legend()


def lag_color(lag: int, lags: list[int]):
    """The color of S."""
    return plt.get_cmap("viridis")(0.95 * lags.index(lag) / max(len(lags) - 1, 1))
