"""Trainings side by side: reward, drift, ratio and gradient diagnostics against the learner step."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.figures import style
from experiments.lag_comparison import evaluations

SMOOTHING = 15  # learner steps in the running mean of noisy diagnostics


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last SMOOTHING values, fewer at the start; missing values are left out."""
    return np.array([np.nanmean(values[max(0, i + 1 - SMOOTHING) : i + 1]) for i in range(len(values))])


def column(records: list[dict], name: str) -> np.ndarray:
    """One number for each step, NaN where the record has null; KeyError where it has no such field."""
    return np.array([np.nan if record[name] is None else record[name] for record in records], float)


def draw(runs: dict[str, list[dict]]) -> plt.Figure:
    """Six panels; `runs` maps a label to the records of a run."""
    with style.context():
        figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex=True)
        for (label, records), color in zip(runs.items(), style.COLORS, strict=False):
            steps = column(records, "step")

            def line(axis, name, steps=steps, records=records, color=color, label=label, **kwargs):
                # The first gradient has no predecessor, hence the slice.
                axis.plot(steps[1:], running_mean(column(records, name)[1:]), color=color, label=label, **kwargs)

            axes[0, 0].plot(*evaluations(records), color=color, label=label)
            line(axes[0, 1], "drift_from_start")
            line(axes[0, 1], "drift_from_behavior", linestyle="--")
            line(axes[0, 2], "entropy")
            line(axes[1, 0], "clip_fraction_positive")
            line(axes[1, 0], "clip_fraction_negative", linestyle="--")
            line(axes[1, 1], "ess")
            line(axes[1, 2], "gradient_cosine")
            ceiling = [(r["step"], r["gradient_cosine_ceiling"]) for r in records if "gradient_cosine_ceiling" in r]
            axes[1, 2].plot(*zip(*ceiling, strict=True), ".", color=color, alpha=0.6, markersize=4)
        titles = (
            "pass rate of the current policy",
            "drift: from the start (solid), from behavior (dashed)",
            "entropy (nats)",
            "clip fraction: A > 0 (solid), A < 0 (dashed)",
            "effective sample size / tokens",
            "gradient cosine (line), its ceiling (dots)",
        )
        for axis, title in zip(axes.flat, titles, strict=True):
            axis.set_title(title)
        for axis in axes[1]:
            axis.set_xlabel("learner step")
        axes[0, 0].set_ylim(0, 1)
        axes[0, 0].legend()
        axes[1, 2].axhline(0, color="0.7", linewidth=0.8, zorder=0)
        return figure
