"""Draws what some slots and the learner do during a few learner steps."""

import matplotlib.pyplot as plt

from experiments.common import style

# Rules whose timelines are drawn, if there are cells of them.
SHOWN = ("synchronous", "one_step_off", "in_order", "bounded", "windowed")
DISCARDED = "#bbbbbb"


def timeline_figure(cells: list[dict], timelines: list[dict]) -> plt.Figure:
    """Draws a panel for each rule of SHOWN. A bar's color is the version of the weights.

    All panels span the same time, which is that of the fastest rule.

    Args:
      cells: the cells that may be shown.
      timelines: the lines of timelines.jsonl.
    """
    by_name = {timeline["cell"]: timeline for timeline in timelines}
    chosen = [cell for cell in cells if cell["buffer"] in SHOWN] or cells[:1]
    shown = [by_name[cell["cell"]] for cell in chosen]
    shortest = min(timeline["end"] - timeline["begin"] for timeline in shown)
    figure, axes = plt.subplots(
        len(chosen), 1, figsize=(10, 2.1 * len(chosen) + 0.5), layout="constrained", squeeze=False
    )
    for cell, axis in zip(chosen, axes[:, 0], strict=True):
        draw_timeline(axis, by_name[cell["cell"]])
        axis.set_xlim(0, shortest)
        axis.set_title(f"{cell['buffer']}, S = {cell['max_lag']}", loc="left")
    axes[-1, 0].set_xlabel(
        "seconds; colors: version of the weights that a response began with, or of the update; "
        "gray: discarded later; hatched: weights are published"
    )
    return figure


def draw_timeline(axis: plt.Axes, timeline: dict) -> None:
    """Draws one timeline, with the learner at the top."""
    begin, end = timeline["begin"], timeline["end"]
    num_rows = 1 + max((row for row, *_ in timeline["slots"]), default=0)
    for row, start, stop, version, is_discarded in timeline["slots"]:
        color = DISCARDED if is_discarded else color_of(version)
        left = max(start, begin) - begin
        width = min(stop, end) - begin - left
        axis.barh(row, width, 0.8, left=left, color=color, edgecolor="white", linewidth=0.3)
    learner_row, height = -0.22 * num_rows, 0.24 * num_rows
    for step, start, done, free in timeline["learner"]:
        left = start - begin
        color = color_of(step)
        axis.barh(learner_row, done - start, height, left=left, color=color, edgecolor="white")
        text = str(step)
        axis.text(
            left + (done - start) / 2,
            learner_row,
            text,
            ha="center",
            va="center",
            fontsize=7,
            clip_on=True,
        )
        if free > done:
            axis.barh(
                learner_row, free - done, height, left=done - begin, color="white", hatch="////"
            )
    axis.set(ylim=(num_rows - 0.4, learner_row - height))
    axis.set_yticks([learner_row, (num_rows - 1) / 2], ["learner", f"{num_rows} slots"])
    axis.tick_params(axis="y", length=0)


def color_of(version: int) -> str:
    """Returns the color of a version; the colors repeat."""
    palette = style.COLORS[:6]  # without black, on which no text could be read
    return palette[version % len(palette)]
