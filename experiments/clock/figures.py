"""Draws rewards by simulated time, and what became of prompts with long answers."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.clock.analysis import reward
from experiments.clock.measure import CELLS
from experiments.common import style
from experiments.pipeline.figures import color_of
from experiments.pipeline.grid import COLOCATED
from staleness_grpo.pipeline.rules import RULES
from staleness_grpo.runtime.records import read_json, read_jsonl

NUM_TIMES = 200  # points of a curve


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws clock_reward and, for tasks with few prompts, clock_prompts; returns the PNG files."""
    cells, summary = read_jsonl(workdir / CELLS), read_json(workdir / "summary.json")
    with style.context():
        figures = {"clock_reward": reward_figure(cells, summary)}
        if all("reward_by_prompt" in cell for cell in cells):
            figures["clock_prompts"] = prompts_figure(summary["by_rule"])
        return [style.save(figure, workdir / name) for name, figure in figures.items()]


def reward_figure(cells: list[dict], summary: dict[str, Any]) -> plt.Figure:
    """Draws the mean reward against the simulated time, a panel for each S.

    A rule that has an S of its own stands in every panel. Bands span the seeds.
    """
    lags, fixed = swept_lags(summary["by_rule"])
    figure, axes = plt.subplots(
        1, len(lags), figsize=(3.6 * len(lags) + 1.6, 3.2), layout="constrained", squeeze=False
    )
    times = np.linspace(0, summary["seconds"], NUM_TIMES)
    for axis, lag in zip(axes[0], lags, strict=True):
        for name, (color, line, _) in color_of(list(summary["by_rule"])).items():
            shown = next(iter(summary["by_rule"][name])) if name in fixed else lag
            rows = [c for c in cells if c["buffer"] == name and str(c["max_lag"]) == shown]
            curves = np.array([[reward(cell, time) for time in times] for cell in rows])
            line = ":" if name in fixed else line
            axis.plot(times, curves.mean(axis=0), line, color=color, label=name)
            axis.fill_between(
                times, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12, linewidth=0
            )
        axis.set(title=f"S = {lag}", xlabel="simulated seconds")
    axes[0, 0].set_ylabel("reward of the current policy")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def prompts_figure(by_rule: dict[str, Any]) -> plt.Figure:
    """Draws by prompt the share of groups that were trained, and the last policy's reward."""
    lags, fixed = swept_lags(by_rule)
    figure, axes = plt.subplots(
        2,
        len(lags),
        figsize=(3.6 * len(lags) + 1.6, 5.2),
        layout="constrained",
        squeeze=False,
        sharex=True,
    )
    rows = (("trained_by_prompt", "share trained"), ("reward_by_prompt", "reward at the end"))
    for column, lag in zip(axes.T, lags, strict=True):
        for axis, (field, label) in zip(column, rows, strict=True):
            for name, (color, line, marker) in color_of(list(by_rule)).items():
                numbers = by_rule[name][next(iter(by_rule[name])) if name in fixed else lag]
                values = [np.nan if value is None else value for value in numbers[field]]
                axis.plot(
                    values,
                    ":" if name in fixed else line,
                    color=color,
                    marker=marker,
                    fillstyle="none",
                    alpha=0.85,
                    label=name,
                )
            axis.set(ylabel=label, ylim=(-0.03, 1.06))
        column[0].set_title(f"S = {lag}")
        column[1].set_xlabel("prompt")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def swept_lags(by_rule: dict[str, Any]) -> tuple[list[str], set[str]]:
    """Returns the lag bounds S of the rules that take any, and the rules with one of their own."""
    fixed = {name for name in by_rule if name == COLOCATED or RULES[name].only_lag is not None}
    swept = [name for name in by_rule if name not in fixed] or list(by_rule)
    return list(by_rule[swept[0]]), fixed
