"""Draws the answer: safe learning rates by S."""

import pathlib

import matplotlib.pyplot as plt

from experiments.common import style
from staleness_grpo.runtime.records import read_json


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws eta_max and the safe learning rate against S; returns the path of the PNG."""
    summary = read_json(workdir / "summary.json")
    with style.context():
        figure, axis = plt.subplots(figsize=(4.8, 3.4), layout="constrained")
        rows = summary["by_lag"]
        lags = [max(row["max_lag"], 0.5) for row in rows]
        for name, label, color in (
            ("eta_max", "half of the runs collapse", style.COLORS[1]),
            ("safe", "5 % of the runs collapse", style.COLORS[2]),
        ):
            axis.plot(lags, [row[name]["value"] for row in rows], "o-", color=color, label=label)
            if all(row[name]["low"] is not None and row[name]["high"] is not None for row in rows):
                low = [row[name]["low"] for row in rows]
                high = [row[name]["high"] for row in rows]
                axis.fill_between(lags, low, high, color=color, alpha=0.2, linewidth=0)
        if summary["at"] is not None:
            lag, rate = summary["at"]
            axis.plot(max(lag, 0.5), rate, "k*", markersize=9, label="the run asked about")
        axis.set(xscale="log", yscale="log", xlabel="lag S", ylabel="learning rate")
        axis.set_title(f"T = {summary['num_steps']} learner steps")
        axis.legend()
        return [style.save(figure, workdir / "advice")]
