"""Computes the numbers of summary.json from the cells of simulated pipelines."""

from collections import defaultdict
from typing import Any

import numpy as np

from experiments.pipeline.grid import COLOCATED, SYNCHRONOUS
from experiments.pipeline.target import best_lag, median_steps, time_to_target

# Fields of a cell whose mean over seeds is in the summary.
AVERAGED = (
    "seconds_per_step",
    "lag_mean",
    "token_lag_mean",
    "length_lag_correlation",
    "engine_idle",
    "engine_paused",
    "learner_idle",
    "learner_publishing",
    "ready_groups",
    "discarded_tokens",
    "length_mean",
    "truncated_fraction",
)
BASELINES = (SYNCHRONOUS, COLOCATED)


def summarize(cells: list[dict]) -> dict[str, Any]:
    """Returns summary.json without claims and times to a target.

    Returns:
      A dictionary with the keys:

      - `num_cells`, `num_seeds`: counts.
      - `by_limit`: for each response limit, by buffer rule and then by S: means over seeds, the
        range of seconds per step, the largest lag, and the speed-up over both synchronous runs.
    """
    grouped: dict[tuple[int, str, int], list[dict]] = defaultdict(list)
    for cell in cells:
        grouped[cell["limit"], cell["buffer"], cell["max_lag"]].append(cell)
    by_limit: dict[str, Any] = {}
    for (limit, buffer, max_lag), chosen in grouped.items():
        rules = by_limit.setdefault(str(limit), {})
        rules.setdefault(buffer, {})[str(max_lag)] = average(chosen)
    for rules in by_limit.values():
        for name in BASELINES:
            if name in rules:
                baseline = rules[name]["0"]["seconds_per_step"]
                for lags in rules.values():
                    for numbers in lags.values():
                        numbers[f"speedup_over_{name}"] = baseline / numbers["seconds_per_step"]
    return {
        "num_cells": len(cells),
        "num_seeds": len({cell["seed"] for cell in cells}),
        "by_limit": by_limit,
    }


def average(cells: list[dict]) -> dict[str, Any]:
    """Returns means over seeds. A mean is None where a cell has no such number."""
    numbers: dict[str, Any] = {}
    for field in AVERAGED:
        values = [cell[field] for cell in cells]
        numbers[field] = None if None in values else float(np.mean(values))
    times = [cell["seconds_per_step"] for cell in cells]
    numbers["seconds_per_step_range"] = [min(times), max(times)]
    numbers["lag_max"] = max(cell["lag_max"] for cell in cells)
    return numbers


def seconds_by_lag(rules: dict[str, Any], buffer: str) -> dict[int, float]:
    """Returns the seconds per learner step by S of one rule.

    S = 0 is the synchronous run, for every rule alike, if there is one.
    """
    lags = rules.get(SYNCHRONOUS, {}) | rules[buffer]
    return {int(lag): numbers["seconds_per_step"] for lag, numbers in lags.items()}


def best_lags(summary: dict[str, Any], map_cells: list[dict], target: float) -> dict:
    """Returns, by limit and buffer rule, `target.best_lag`."""
    return {
        limit: {
            buffer: best_lag(map_cells, target, seconds_by_lag(rules, buffer))
            for buffer in rules
            if buffer not in BASELINES
        }
        for limit, rules in summary["by_limit"].items()
    }


def times_to_target(summary: dict[str, Any], map_cells: list[dict], target: float) -> dict:
    """Returns, by limit and buffer rule, the time to a target reward by S.

    The trainings of the map have a constant lag S, whatever the rule. Only the time of their steps
    comes from the simulation.
    """
    steps = median_steps(map_cells, target)
    return {
        limit: {
            buffer: time_to_target(steps, seconds_by_lag(rules, buffer))
            for buffer in rules
            if buffer not in BASELINES
        }
        for limit, rules in summary["by_limit"].items()
    }
