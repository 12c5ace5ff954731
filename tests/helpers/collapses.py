"""Draws records of sweep cells from the saturating law of collapse, without training anything."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict


def record(
    name: str, cell: ConfigDict, constants: Mapping[str, float], rng: np.random.Generator
) -> dict[str, Any]:
    """Returns the line of cells.jsonl of a run that follows the law.

    Args:
      name: the cell's name.
      cell: the config of its training.
      constants: `t_inf` at eta = `rate`, `b`, `s0`, `cap` and `sigma`.
      rng: draws the collapse.
    """
    lag, rate, every = cell.lag.max_lag, cell.optimizer.learning_rate, cell.eval_every
    time = np.inf
    if lag:
        median = constants["t_inf"] * (rate / constants["rate"]) ** -constants["b"]
        time = median * (1 + constants["s0"] / lag)
        time *= np.exp(constants["sigma"] * rng.normal())
    if rate > constants["cap"] * np.exp(0.2 * rng.normal()):
        time = min(time, 15 * np.exp(0.5 * rng.normal()))
    # The sign of this run is exact, so that it tells the time of the collapse.
    known_time = min(time, 1e4)
    sign = 0.1 * (known_time / 700) ** (-1 / 0.7) if lag else 0.0
    step = int(every * np.ceil(time / every)) if time < cell.steps - 20 else None
    return {
        "cell": name,
        "max_lag": lag,
        "learning_rate": rate,
        "seed": cell.seed,
        "optimizer": cell.optimizer.name,
        "steps": cell.steps,
        "steps_run": cell.steps if step is None else min(step + 60, cell.steps),
        "finite": True,
        "collapse_step": step,
        "trace_every": every,
        "final": 0.9 if step is None else 0.0,
        "traces": {
            "log_ratio_second_moment": [sign] * (cell.steps // every),
            "ess": [1 / (1 + sign)] * (cell.steps // every),
            "clip_fraction": [sign / (1 + sign)] * (cell.steps // every),
        },
    }


def law(b1: float, **changed: float) -> dict[str, float]:
    """Returns constants in which S0 is the memory of the momentum."""
    known = dict(t_inf=300.0, rate=1.7e-3, b=1.7, s0=1 / (1 - b1), cap=6e-3, sigma=0.3)
    return known | changed
