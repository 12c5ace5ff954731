"""Draws trainings: reward, drift, ratio and gradient diagnostics by learner step."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.train.analysis import evaluations
from staleness_grpo.runtime.records import read_json, read_jsonl

SMOOTHING = 15  # learner steps in the running mean of noisy diagnostics
# (field, line style) of each panel that is a running mean; the title says which line is which.
PANELS = {
    "drift: from the start (solid), from behavior (dashed)": (
        ("drift_from_start", "-"),
        ("drift_from_behavior", "--"),
    ),
    "entropy (nats)": (("entropy", "-"),),
    "clip fraction: A > 0 (solid), A < 0 (dashed)": (
        ("clip_fraction_positive", "-"),
        ("clip_fraction_negative", "--"),
    ),
    "effective sample size / tokens": (("ess", "-"),),
    "gradient cosine (line), its ceiling (dots)": (("gradient_cosine", "-"),),
}


def running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last SMOOTHING values, without missing ones; fewer at the start."""
    windows = (values[max(0, i + 1 - SMOOTHING) : i + 1] for i in range(len(values)))
    return np.array(
        [np.nanmean(window) if np.isfinite(window).any() else np.nan for window in windows]
    )


def column(records: list[dict], name: str) -> np.ndarray:
    """Returns one number for each step, NaN where the record has null.

    Raises:
      KeyError: a record has no such field.
    """
    return np.array([np.nan if record[name] is None else record[name] for record in records], float)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws training.png and .pdf into the workdir of a finished training; returns the PNG."""
    lag = read_json(workdir / "config.json")["lag"]
    label = f"S = {lag['max_lag']}, {lag['schedule']}"
    figure = curves({label: read_jsonl(workdir / "metrics.jsonl")})
    return [style.save(figure, workdir / "training")]


def curves(runs: dict[str, list[dict]]) -> plt.Figure:
    """Draws six panels of runs side by side; `runs` maps a label to the records of a run.

    A panel of something that a run did not measure says so.
    """
    with style.context():
        figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex=True)
        reward, cosine = axes[0, 0], axes[1, 2]
        reward.set_title("reward of the current policy")
        cosine.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        for axis, title in zip(axes.flat[1:], PANELS, strict=True):
            axis.set_title(title)
        for axis in axes[1]:
            axis.set_xlabel("learner step")
        for (label, records), color in zip(runs.items(), style.COLORS, strict=False):
            steps = column(records, "step")
            reward.plot(*evaluations(records), color=color, label=label)
            for axis, lines in zip(axes.flat[1:], PANELS.values(), strict=True):
                for name, line in lines:
                    if name in records[0]:
                        # The first gradient has no predecessor, hence the slice.
                        values = running_mean(column(records, name)[1:])
                        axis.plot(steps[1:], values, line, color=color)
            ceilings = [
                (record["step"], record["gradient_cosine_ceiling"])
                for record in records
                if record.get("gradient_cosine_ceiling") is not None
            ]
            if ceilings:
                cosine.plot(*zip(*ceilings, strict=True), ".", color=color, alpha=0.6, markersize=4)
        for axis, number_of_guides in zip(axes.flat, (0, 0, 0, 0, 0, 1), strict=True):
            measured = [line for line in axis.lines if np.size(line.get_xdata()) > 0]
            if len(measured) == number_of_guides:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
        clip_fraction, sample_size = axes[1, 0], axes[1, 1]
        clip_fraction.set_ylim(0, max(0.05, clip_fraction.get_ylim()[1]))
        sample_size.set_ylim(0, 1.05)  # a share; unscaled, rounding would look like a curve
        reward.legend()
        return figure
