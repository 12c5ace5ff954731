"""Draws the figures of simulated pipelines from their records alone."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.pipeline.grid import COLOCATED, SYNCHRONOUS
from experiments.pipeline.measure import CELLS, TIMELINES
from experiments.pipeline.timeline_figure import timeline_figure
from staleness_grpo.runtime.records import read_json, read_jsonl

# Lags, idle shares and timelines are drawn at this S, or at the smallest that is there.
SHOWN_LAG = 2
MARKERS = "os^vDPX*"


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws all figures of a finished workdir.

    Returns:
      The paths of the PNG files. The one of times to a reward is there if the summary has them.
    """
    cells, summary = read_jsonl(workdir / CELLS), read_json(workdir / "summary.json")
    shown = shown_cells(cells)
    with style.context():
        figures = {
            "pipeline_time": time_figure(summary["by_limit"]),
            "pipeline_lags": lag_figure(shown),
            "pipeline_idle": idle_figure(shown),
            "pipeline_timeline": timeline_figure(shown, read_jsonl(workdir / TIMELINES)),
        }
        if "time_to_target" in summary:
            figures["pipeline_target"] = target_figure(summary["time_to_target"])
        return [style.save(figure, workdir / name) for name, figure in figures.items()]


def shown_cells(cells: list[dict]) -> list[dict]:
    """Returns a cell of the first seed for each rule, at the S that is shown and the first limit.

    A rule with a lag of its own has that.
    """
    lags = sorted({cell["max_lag"] for cell in cells})
    free = [lag for lag in lags if lag >= SHOWN_LAG] or lags
    limit, seed = cells[0]["limit"], cells[0]["seed"]
    found: dict[str, dict] = {}
    for cell in cells:
        if (cell["limit"], cell["seed"]) == (limit, seed):
            kept = found.get(cell["buffer"])
            nearer = kept is None or abs(cell["max_lag"] - free[0]) < abs(kept["max_lag"] - free[0])
            if nearer:
                found[cell["buffer"]] = cell
    return list(found.values())


def color_of(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """Returns color, line style and marker of each rule."""
    return {
        name: (
            style.COLORS[i % len(style.COLORS)],
            "-" if i < len(style.COLORS) else "--",
            MARKERS[i % len(MARKERS)],
        )
        for i, name in enumerate(names)
    }


def time_figure(by_limit: dict[str, Any]) -> plt.Figure:
    """Draws seconds per learner step and the discarded share against S, a column for a limit."""
    figure, axes = plt.subplots(
        2,
        len(by_limit),
        figsize=(4.6 * len(by_limit) + 1.4, 5.6),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for (limit, rules), column in zip(by_limit.items(), axes.T, strict=True):
        for name, line in ((SYNCHRONOUS, "--"), (COLOCATED, ":")):
            if name in rules:
                seconds = rules[name]["0"]["seconds_per_step"]
                column[0].axhline(seconds, color="0.5", linestyle=line, label=name)
        swept = {name: lags for name, lags in rules.items() if name not in (SYNCHRONOUS, COLOCATED)}
        colors = color_of(list(swept))
        for name, lags in swept.items():
            color, line, marker = colors[name]
            x = np.array([int(lag) for lag in lags])
            for axis, field, factor in (
                (column[0], "seconds_per_step", 1),
                (column[1], "discarded_tokens", 100),
            ):
                y = [factor * numbers[field] for numbers in lags.values()]
                axis.plot(
                    x, y, line, color=color, marker=marker, label=name, alpha=0.85, fillstyle="none"
                )
            ranges = np.array([numbers["seconds_per_step_range"] for numbers in lags.values()])
            column[0].vlines(x, ranges[:, 0], ranges[:, 1], color=color, linewidth=1)
        column[0].set(
            title=f"response limit {int(limit):,} tokens", ylabel="seconds per learner step"
        )
        column[0].set_ylim(bottom=0)
        column[1].set(xlabel="lag bound S (optimizer updates)", ylabel="discarded tokens (%)")
        for axis in column:
            lag_axis(axis, sorted({int(lag) for lags in swept.values() for lag in lags}))
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def lag_axis(axis: plt.Axes, lags: list[int]) -> None:
    """Makes the x axis logarithmic from 1 on, with a tick at each lag bound."""
    axis.set_xscale("symlog", base=2, linthresh=1)
    if lags:
        axis.set_xticks(lags, [str(lag) for lag in lags])
        axis.set_xlim(0.85 * lags[0] - 0.1, 1.15 * lags[-1] + 0.1)
    axis.minorticks_off()


def title_of(cell: dict) -> str:
    """Returns a rule with its S."""
    return f"{cell['buffer']}, S = {cell['max_lag']}"


def lag_figure(cells: list[dict]) -> plt.Figure:
    """Draws a histogram of the lags for each rule, and the lag against the length."""
    stale = [cell for cell in cells if cell["lag_max"] > 0] or cells
    rows = -(-len(stale) // 4)
    figure = plt.figure(figsize=(11, 2.0 * rows + 3.0), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(2.0 * rows, 3.0)))
    axes = upper.subplots(rows, 4, sharex=True, sharey=True, squeeze=False)
    longest = max(cell["lag_max"] for cell in stale)
    colors = color_of([cell["buffer"] for cell in stale])
    for axis, cell in zip(axes.flat, stale, strict=False):
        shares = np.zeros(longest + 1)
        shares[: len(cell["lag_histogram"])] = cell["lag_histogram"]
        axis.bar(range(longest + 1), 100 * shares / shares.sum(), color=colors[cell["buffer"]][0])
        axis.axvline(cell["max_lag"] + 0.5, color="0.4", linestyle=":", linewidth=1)
        axis.set_title(title_of(cell))
    for axis in axes.flat[len(stale) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("groups (%)")
    upper.supxlabel("lag of a group (optimizer updates); dotted: the bound S", fontsize=9)
    axis = lower.subplots()
    for cell in stale:
        color, line, marker = colors[cell["buffer"]]
        length, lag = np.array(cell["lag_by_length"]).T
        axis.plot(
            length, lag, line, color=color, marker=marker, fillstyle="none", label=title_of(cell)
        )
    axis.set(xlabel="response length (tokens), mean of each fifth", ylabel="mean lag (updates)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def idle_figure(cells: list[dict]) -> plt.Figure:
    """Draws the idle shares of engines and learner for each rule."""
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 0.32 * len(cells) + 1.4), layout="constrained", sharey=True
    )
    rows = np.arange(len(cells))
    panels = (
        ("engine slots", ("engine_idle", "without a response"), ("engine_paused", "paused")),
        ("learner", ("learner_idle", "waits for a batch"), ("learner_publishing", "publishes")),
    )
    for axis, (title, *parts) in zip(axes, panels, strict=True):
        left = np.zeros(len(cells))
        for (field, label), color in zip(parts, style.COLORS[:2], strict=True):
            shares = np.array([100 * cell[field] for cell in cells])
            # Empty slots stand still in a pause too, so paused time is not added to idle time.
            start = np.zeros(len(cells)) if field == "engine_paused" else left
            height = 0.3 if field == "engine_paused" else 0.7
            axis.barh(rows, shares, height, left=start, color=color, label=label)
            left = left + shares
        axis.set(title=title, xlabel="share of time (%)", xlim=(0, 100))
        axis.legend(loc="lower right")
    axes[0].set_yticks(rows, [title_of(cell) for cell in cells])
    axes[0].invert_yaxis()
    return figure


def target_figure(times: dict[str, Any]) -> plt.Figure:
    """Draws the time to the target reward against S, a panel for each limit."""
    figure, axes = plt.subplots(
        1, len(times), figsize=(4.6 * len(times) + 1.4, 3.2), layout="constrained", squeeze=False
    )
    for (limit, rules), axis in zip(times.items(), axes[0], strict=True):
        colors = color_of(list(rules))
        for name, records in rules.items():
            color, line, marker = colors[name]
            reached = [record for record in records if record["seconds"] is not None]
            hours = [record["seconds"] / 3600 for record in reached]
            lags = [record["max_lag"] for record in reached]
            axis.plot(lags, hours, line, color=color, marker=marker, fillstyle="none", label=name)
        axis.set(title=f"response limit {int(limit):,} tokens", ylabel="hours to the target reward")
        axis.set(xlabel="lag bound S (optimizer updates)")
        every = (record["max_lag"] for records in rules.values() for record in records)
        lag_axis(axis, sorted(set(every)))
        axis.set_ylim(bottom=0)
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure
