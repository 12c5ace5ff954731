"""Draws kinds of trainings over each other, by learner step."""

import pathlib
import textwrap

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from experiments.compare.analysis import LEVEL, Kind, curve
from experiments.train.figures import SMOOTHING

PANELS = {  # field -> title
    "eval_reward": "reward of the current policy",
    "entropy": "entropy (nats)",
    "clip_fraction": "clip fraction",
    "ess": "effective sample size / tokens",
    "drift_from_behavior": "drift from behavior",
    "gradient_cosine": "gradient cosine",
}
# A t interval knows no bounds. It is drawn only where the metric can be.
RANGES = {
    "entropy": (0, np.inf),
    "clip_fraction": (0, 1),
    "ess": (0, 1),
    "drift_from_behavior": (0, np.inf),
    "gradient_cosine": (-1, 1),
}
FLAT = 1e-4  # a line whose span is a smaller share of its value is drawn as constant
LABEL_WIDTH = 150  # characters of a line of the legend, which then fits into the figure
LINE_STYLES = ("-", "--", ":", "-.")
MAX_KINDS = len(style.COLORS) * len(LINE_STYLES)


def draw(found: list[Kind], path: pathlib.Path) -> None:
    """Draws a figure of all kinds and writes it to a path ending in .png or .pdf."""
    figure = compared(found)
    figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    plt.close(figure)


def compared(found: list[Kind]) -> plt.Figure:
    """Returns six panels, each with a line for every kind, and a band where it has several seeds.

    A panel without data says "not measured".
    """
    with style.context():
        columns = 1 if max(len(kind.label) for kind in found) > 60 else 2
        labels = [textwrap.fill(kind.label, LABEL_WIDTH) for kind in found]
        num_lines = sum(label.count("\n") + 1 for label in labels)
        legend_height = 0.2 * -(-num_lines // columns)
        figure, axes = plt.subplots(
            2, 3, figsize=(11, 5.6 + legend_height), layout="constrained", sharex=True
        )
        for axis, (name, title) in zip(axes.flat, PANELS.items(), strict=True):
            axis.set_title(title)
            axis.ticklabel_format(axis="y", useOffset=False)
            for number, (kind, label) in enumerate(zip(found, labels, strict=True)):
                line = curve(kind.runs, name)
                if line is None or not np.isfinite(line.mean).any():
                    continue
                color = style.COLORS[number % len(style.COLORS)]
                look = LINE_STYLES[number // len(style.COLORS)]
                axis.plot(line.steps, line.mean, look, color=color, label=label)
                if line.low is not None and line.high is not None:
                    limits = RANGES.get(name, (-np.inf, np.inf))
                    low, high = np.clip(line.low, *limits), np.clip(line.high, *limits)
                    axis.fill_between(line.steps, low, high, color=color, alpha=0.2, lw=0)
            low, high = axis.get_ylim()
            middle = (low + high) / 2
            if high - low < FLAT * abs(middle):  # all of it is rounding
                axis.set_ylim(middle - abs(middle) / 10, middle + abs(middle) / 10)
            if not axis.lines:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
        for axis in axes[1]:
            axis.set_xlabel("learner step")
        lines = {
            line.get_label(): line for axis in axes.flat for line in axis.lines
        }  # one of each kind
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns)
        if any(len(kind.runs) > 1 for kind in found):
            figure.suptitle(
                f"mean over seeds, with the {LEVEL:.0%} t interval at each step; "
                f"all but the reward are running means over {SMOOTHING} steps",
                fontsize=9,
            )
        return figure
