"""Draws final rewards with and without the guard."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.common import style
from staleness_grpo.runtime.records import read_json


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the final reward by learning rate, a panel for each lag; returns the PNG's path."""
    settings = read_json(workdir / "summary.json")["settings"]
    lags = sorted({setting["max_lag"] for setting in settings})
    with style.context():
        figure, axes = plt.subplots(
            1, len(lags), figsize=(2.4 * len(lags) + 1, 3), layout="constrained", sharey=True
        )
        for lag, axis in zip(lags, np.atleast_1d(axes), strict=True):
            at_lag = [setting for setting in settings if setting["max_lag"] == lag]
            rates = [setting["learning_rate"] for setting in at_lag]
            for name, label in (("final", "no guard"), ("final_with_guard", "guard, scale")):
                axis.plot(rates, [setting[name] for setting in at_lag], "o-", label=label)
            axis.set(xscale="log", xlabel="learning rate", title=f"S = {lag}", ylim=(0, 1))
        np.atleast_1d(axes)[0].set_ylabel("final reward")
        np.atleast_1d(axes)[-1].legend()
        return [style.save(figure, workdir / "guard")]
