"""Draws which learning rates are usable at each lag, between two edges."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from staleness_grpo.scaling import outcomes
from staleness_grpo.scaling.edges import NONE

LAG_0_AT = 0.5  # position of S = 0 on a logarithmic axis of S
MARKERS = {
    outcomes.LEARNED: ("o", "#3a7d44"),
    outcomes.STALLED: ("s", "#9a9a9a"),
    outcomes.COLLAPSED: ("X", style.COLORS[1]),
    outcomes.RECOVERED: ("^", "#d9a441"),
}
ROW = 0.35  # share of the distance between two learning rates that the seeds of a cell take


def usable_figure(records: list[dict], summary: dict) -> plt.Figure:
    """Draws the outcome of every cell over S and eta, and the two edges of the usable rates.

    The seeds of one cell are side by side. An edge that lies outside the grid has no line there:
    the usable band reaches the end of the grid.
    """
    lags = sorted({record["max_lag"] for record in records})
    rates = sorted({record["learning_rate"] for record in records})
    seeds = sorted({record["seed"] for record in records})
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    positions = np.array([max(lag, LAG_0_AT) for lag in lags])
    for name, (marker, color) in MARKERS.items():
        chosen = [
            record
            for record, outcome in zip(records, outcomes.outcomes(records), strict=True)
            if outcome == name
        ]
        shifts = [seeds.index(r["seed"]) / max(len(seeds) - 1, 1) - 0.5 for r in chosen]
        x = [max(r["max_lag"], LAG_0_AT) for r in chosen]
        axis.scatter(
            x * 2.0 ** (ROW * np.array(shifts)) if chosen else [],
            [r["learning_rate"] for r in chosen],
            marker=marker,
            s=12,
            color=color,
            linewidths=0,
            label=f"{name} ({len(chosen)})",
        )
    _band(axis, positions, lags, rates, summary["usable"]["by_lag"])
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=f"max_lag S (0 at {LAG_0_AT})",
        ylabel=r"learning rate $\eta$",
    )
    axis.set_xticks(positions, lags)
    axis.set_yticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    usable = summary["usable"]
    slope = "no slope: fewer than three upper edges in the grid"
    if usable["slope"] is not None:
        low, high = usable["slope_interval"]
        slope = f"slope of the upper edge {usable['slope']:.2f} [{low:.2f}, {high:.2f}]"
    steps = records[0]["steps"]
    title = f"usable: half of {len(seeds)} seeds or more learn within T = {steps}\n{slope}"
    axis.set_title(title)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _band(
    axis: plt.Axes, positions: np.ndarray, lags: list[int], rates: list[float], by_lag: dict
) -> None:
    """Fills the usable learning rates of each lag, and draws the edges that lie in the grid."""
    margin = 1.25
    bottom, top = rates[0] / margin, rates[-1] * margin
    width = 2.0**0.4
    for position, lag in zip(positions, lags, strict=True):
        edge = by_lag[str(lag)]
        if edge.get("low_is") == NONE:
            continue
        low, high = edge["low"] or bottom, edge["high"] or top
        span = [position / width, position * width]
        axis.fill_between(span, low, high, color="#3a7d44", alpha=0.12, linewidth=0)
        for name in ("low", "high"):
            if edge[name] is None:
                continue
            axis.plot(span, [edge[name]] * 2, color="#3a7d44", linewidth=1.2)
            ends = edge[f"{name}_interval"]
            if None not in ends:
                axis.plot([position] * 2, ends, color="#3a7d44", linewidth=0.8, zorder=0)
    axis.set_ylim(bottom, top)
