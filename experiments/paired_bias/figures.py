"""Draws the figure of the paired bias from cells.jsonl alone: rewards by lag, and the bias."""

import itertools
import pathlib
from typing import Any

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

from experiments.common import style
from staleness_grpo.runtime.records import read_jsonl

LAG_LABEL = "lag S (optimizer updates)"
# The panels after the panel of the rewards: x, y, label of x, label of y.
PANELS = (
    ("max_lag", "bias_norm", LAG_LABEL, "bias norm"),
    ("max_lag", "relative_bias", LAG_LABEL, "relative bias"),
    ("max_lag", "cosine", LAG_LABEL, "cosine of stale with fresh gradient"),
    ("s_eta", "bias_norm", r"S $\eta$", "bias norm"),
    ("drift", "bias_norm", "drift from the behavior policy", "bias norm"),
)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws paired_bias.png and paired_bias.pdf into the workdir; returns the path of the PNG."""
    cells = read_jsonl(workdir / "cells.jsonl")
    with style.context():
        return [style.save(paired_figure(cells), workdir / "paired_bias")]


def paired_figure(cells: list[dict]) -> plt.Figure:
    """Draws the rewards by lag, and the bias against S, S eta and drift.

    Args:
      cells: the records of the trainings. With several seeds, each has its own points.
    """
    rates = sorted({cell["learning_rate"] for cell in cells})
    lags = sorted({cell["max_lag"] for cell in cells})
    stale = [cell for cell in cells if cell["max_lag"] > 0]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    reward_panel(axes[0, 0], [cell for cell in cells if cell["learning_rate"] == rates[-1]], lags)
    for axis, (x, y, x_label, y_label) in zip(axes.flat[1:], PANELS, strict=True):
        bias_panel(axis, stale, rates, x, y)
        axis.set(xlabel=x_label, ylabel=y_label)
    axes[0, 1].legend()
    axes[1, 0].axhline(1, color="0.7", linewidth=0.8, zorder=0)
    for axis in (axes[0, 1], axes[0, 2], axes[1, 0]):
        lag_ticks(axis, [lag for lag in lags if lag])
    numeric_axes = [single_axis for axis in axes[1, 1:] for single_axis in (axis.xaxis, axis.yaxis)]
    for single_axis in (axes[0, 1].yaxis, axes[0, 2].yaxis, *numeric_axes):
        if single_axis.get_scale() == "log":
            logarithmic_ticks(single_axis)
    return figure


def reward_panel(axis: Any, cells: list[dict], lags: list[int]) -> None:
    """Draws the reward against the learner step, with a line for each cell.

    All cells have the same learning rate.
    """
    named: set[int] = set()  # lags in the legend; the cells of other seeds have the same color
    for cell in cells:
        lag = cell["max_lag"]
        label = None if lag in named else f"S = {lag}"
        named.add(lag)
        color = lag_color(lag, lags)
        axis.plot(cell["eval_steps"], cell["eval_rewards"], color=color, label=label)
    axis.set(
        xlabel="learner step",
        ylabel="reward of the current policy",
        title=rf"reward, $\eta$ = {cells[0]['learning_rate']:g}",
    )
    if any(cell["eval_steps"] for cell in cells):
        axis.legend(ncols=2)


def bias_panel(axis: Any, stale: list[dict], rates: list[float], x: str, y: str) -> None:
    """Draws the quantity `y` against `x`, with a line for each learning rate."""
    shown = [cell for cell in stale if cell[x] is not None and cell[y] is not None]
    for rate, color in zip(rates, itertools.cycle(style.COLORS), strict=False):
        cells_of_rate = [cell for cell in shown if cell["learning_rate"] == rate]
        cells_of_rate.sort(key=lambda cell: cell[x])
        errorbars(axis, cells_of_rate, x, y, color, rf"$\eta$ = {rate:g}")
    axis.set_xscale("log" if shown else "linear")
    if any(cell[y] > 0 for cell in shown):
        if y != "cosine":
            axis.set_yscale("log")
        if x != "max_lag":
            slope_one(axis, shown, x, y)


def lag_ticks(axis: Any, lags: list[int]) -> None:
    """Puts a tick at each lag, and no other ticks."""
    axis.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(lags))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def logarithmic_ticks(single_axis: Any) -> None:
    """Labels the powers of ten of an x or y axis.

    An axis that spans less than a factor of 30 also has labels at 2 and 5 times the powers of ten.
    """
    low, high = single_axis.get_view_interval()
    subs = (1, 2, 5) if high < 30 * low else (1,)
    single_axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    single_axis.set_major_formatter("{x:g}")
    single_axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def errorbars(axis: Any, cells: list[dict], x: str, y: str, color: str, label: str) -> None:
    """Draws estimates with their intervals.

    - An infinite bound, which is null in the records, becomes an arrow to the edge of the panel.
    - An estimate of 0 cannot be drawn on a logarithmic axis. A triangle marks its upper bound.
    - An estimate without an interval has a marker alone.
    """
    for cell in cells:
        low, high = cell[f"{y}_interval"]
        if low is None and high is None:  # no interval was estimated
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


def slope_one(axis: Any, cells: list[dict], x: str, y: str) -> None:
    """Draws the line y = c x, with c the geometric mean of y / x over cells with positive y."""
    positive = [cell for cell in cells if cell[y] > 0]
    xs = np.array([cell[x] for cell in positive])
    factor = np.exp(np.mean(np.log([cell[y] for cell in positive]) - np.log(xs)))
    ends = np.array([xs.min(), xs.max()])
    axis.plot(
        ends, factor * ends, color="0.6", linestyle="--", linewidth=1, zorder=0, label="slope 1"
    )
    axis.legend()


def lag_color(lag: int, lags: list[int]) -> Any:
    """Returns the color of a lag, by its place in the sorted lags."""
    return plt.get_cmap("viridis")(0.95 * lags.index(lag) / max(len(lags) - 1, 1))
