"""Draws the reward and the diagnostics of trainings against the learner step."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.train.analysis import evaluations
from staleness_grpo.runtime.records import DamagedFileError, read_json, read_jsonl

SMOOTHING = 15  # number of learner steps over which noisy diagnostics are averaged
# The panels that show running means: title -> (field, line style) of each line.
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
    """Returns for each step the mean over the last SMOOTHING values, without NaN.

    The first steps have fewer values to average. If all values are NaN, the mean is NaN.
    """
    windows = (values[max(0, i + 1 - SMOOTHING) : i + 1] for i in range(len(values)))
    return np.array(
        [np.nanmean(window) if np.isfinite(window).any() else np.nan for window in windows]
    )


def column(records: list[dict], name: str) -> np.ndarray:
    """Returns the values of one field, one for each record. A null becomes NaN.

    Raises:
      KeyError: a record does not have the field.
    """
    return np.array([np.nan if record[name] is None else record[name] for record in records], float)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws training.png and training.pdf into the workdir; returns the path of the PNG."""
    lag = read_json(workdir / "config.json")["lag"]
    label = f"S = {lag['max_lag']}, {lag['schedule']}"
    path = workdir / "metrics.jsonl"
    if not (records := read_jsonl(path)):
        raise DamagedFileError(f"{path} has no record")
    figure = curves({label: records})
    return [style.save(figure, workdir / "training")]


def curves(runs: dict[str, list[dict]]) -> plt.Figure:
    """Draws six panels, each with one line per run. A panel without data says "not measured".

    Args:
      runs: the label of each run -> the records of the run.
    """
    with style.context():
        figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex=True)
        reward, (clip_fraction, sample_size, cosine) = axes[0, 0], axes[1]
        reward.set_title("reward of the current policy")
        cosine.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        for axis, title in zip(axes.flat[1:], PANELS, strict=True):
            axis.set_title(title)
        for axis in axes[1]:
            axis.set_xlabel("learner step")
        for (label, records), color in zip(runs.items(), style.COLORS, strict=False):
            steps = column(records, "step")
            reward.plot(*evaluations(records), color=color, label=label)
            held_out = [
                (record["step"], record["heldout_reward"])
                for record in records
                if "heldout_reward" in record
            ]
            if held_out:
                reward.plot(*zip(*held_out, strict=True), "--", color=color, label="held out")
            for axis, lines in zip(axes.flat[1:], PANELS.values(), strict=True):
                for name, line_style in lines:
                    if name in records[0]:
                        # The first step is left out: its gradient has no predecessor to compare.
                        values = running_mean(column(records, name)[1:])
                        axis.plot(steps[1:], values, line_style, color=color)
            if "guard_scale" in records[0]:
                sample_size.step(steps, column(records, "guard_scale"), ":", color=color)
                sample_size.set_title("effective sample size / tokens, guard's scale (dotted)")
            ceilings = [
                (record["step"], record["gradient_cosine_ceiling"])
                for record in records
                if record.get("gradient_cosine_ceiling") is not None
            ]
            if ceilings:
                cosine.plot(*zip(*ceilings, strict=True), ".", color=color, alpha=0.6, markersize=4)
        # The cosine panel, which is the last one, has a line at 0 that is not a measurement.
        for axis, num_guide_lines in zip(axes.flat, (0, 0, 0, 0, 0, 1), strict=True):
            lines_with_data = [line for line in axis.lines if np.size(line.get_xdata()) > 0]
            if len(lines_with_data) == num_guide_lines:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
        clip_fraction.set_ylim(0, max(0.05, clip_fraction.get_ylim()[1]))
        sample_size.set_ylim(0, 1.05)  # without fixed limits, rounding errors would fill the panel
        reward.legend()
        return figure
