"""Draws how time and memory of a learner step grow with each size."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from staleness_grpo.runtime.records import read_json

LABELS = {
    "num_prompts": "prompts of a step, N",
    "group_size": "responses to a prompt, G",
    "prompt_length": "prompt tokens, P",
    "response_length": "response tokens, R",
    "d_model": "width, d_model",
    "vocab_size": "tokens of the vocabulary, V",
    "max_lag": "lag, S",
    "devices": "simulated devices",
    "processes": "processes of one device",
}
LINES = {
    "step_seconds": "step",
    "sampling_seconds": "sampling",
    "update_seconds": "update",
    "host_seconds": "host",
}
COLUMNS = 3


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws scaling_time and scaling_memory; returns the PNG files."""
    by_size = read_json(workdir / "summary.json")["by_size"]
    with style.context():
        figures = {
            "scaling_time": panels(by_size, LINES, "seconds"),
            "scaling_memory": panels(by_size, {"peak_bytes": "peak of a device"}, "bytes"),
        }
        return [style.save(figure, workdir / name) for name, figure in figures.items()]


def panels(by_size: dict[str, Any], lines: dict[str, str], unit: str) -> plt.Figure:
    """Draws one panel for each size, with the exponent of the first line in its title."""
    rows = -(-len(by_size) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(9, 2.6 * rows), layout="constrained", sharey=True, squeeze=False
    )
    for axis, (size, measured) in zip(axes.flat, by_size.items(), strict=False):
        values = np.maximum(measured["values"], 1)
        for name, label in lines.items():
            axis.loglog(values, measured[name], "o-", label=label)
        slope = measured["exponents"][next(iter(lines))]
        axis.set(title=f"exponent {slope:.2f}", xlabel=LABELS[size])
        axis.set_xticks(values, [str(value) for value in measured["values"]])
        axis.set_xticks([], minor=True)
    for axis in axes[:, 0]:
        axis.set_ylabel(unit)
    if len(lines) > 1:
        axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure
