"""Runs each training of a paired-bias grid in its own workdir, and makes its record."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.workdir import SUMMARY
from experiments.paired_bias.grid import trainings
from staleness_grpo.bias import paired
from staleness_grpo.runtime.records import read_json, read_jsonl, write_jsonl


def measure(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Runs the trainings that are not finished, and writes cells.jsonl.

    Returns:
      The record of every training.
    """
    from experiments.train.__main__ import draw, main

    cells = []
    for name, training in trainings(config).items():
        folder = workdir / name
        folder.mkdir(exist_ok=True)
        cli.complete(main, draw, training, folder)
        records = read_jsonl(folder / "metrics.jsonl")
        cells.append(cell_record(training, records, read_json(folder / SUMMARY)))
    write_jsonl(workdir / "cells.jsonl", cells)
    return cells


def cell_record(config: ConfigDict, records: list[dict], summary: dict) -> dict[str, Any]:
    """Returns the record of one training: its bias at the full lag, its rewards and its collapse.

    Args:
      config: the config of the training.
      records: the training's metrics.jsonl.
      summary: the training's summary.json.
    """
    evaluated = [r for r in records if "eval_reward" in r]
    return {
        "max_lag": config.lag.max_lag,
        "learning_rate": config.optimizer.learning_rate,
        **paired_record(config, records),
        "collapsed": summary["collapsed"],
        "final_eval_reward": summary["final_eval_reward"],
        "eval_steps": [r["step"] for r in evaluated],
        "eval_rewards": [r["eval_reward"] for r in evaluated],
    }


def paired_record(config: ConfigDict, records: list[dict]) -> dict[str, Any]:
    """Returns the gradient bias of one training at its full lag.

    The bias is estimated from all finite comparisons at the full lag. A training that collapses may
    end before it reaches its full lag, and its last comparison may not be finite. Comparisons that
    are not finite are left out and counted in `num_not_finite`. Without a finite comparison, the
    estimates are NaN.

    Args:
      config: the config of the training.
      records: the training's metrics.jsonl.
    """
    max_lag = config.lag.max_lag
    compared = [r for r in records if "paired_gram" in r and r["lag_mean"] == max_lag]
    finite = [r for r in compared if np.all(np.isfinite(np.array(r["paired_gram"], float)))]
    estimates = paired.NO_ESTIMATE
    if finite:
        estimates = paired.estimate(np.array([r["paired_gram"] for r in finite]))
    clip_fractions = [r["clip_fraction"] for r in finite]
    drift = [r["drift_from_behavior"] for r in finite] if config.metrics.parameter_drift else []
    return {
        "s_eta": max_lag * config.optimizer.learning_rate,
        **dataclasses.asdict(estimates),
        "num_comparisons": len(finite),
        "num_not_finite": len(compared) - len(finite),
        "num_reward_failures": sum(r["paired_reward_failures"] for r in finite),
        "first_step": finite[0]["step"] if finite else None,
        "clip_fraction": float(np.mean(clip_fractions)) if finite else math.nan,
        "drift": float(np.sqrt(np.mean(np.square(drift)))) if drift else None,
    }
