"""Makes the short runs of a probe, each with a record of `experiments.sweep`."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from experiments.sweep.measure import run_map
from staleness_grpo.scaling import collapse_law
from staleness_grpo.scaling.probe import LAGS, probe

NAME = "probe"  # of the probe's map: cells-probe.jsonl has a line for each of its runs
NUM_RATES = 9  # learning rates of the probe's grid
NUM_SEEDS = 2
FREEZE_AFTER = 60  # learner steps with a low reward after which a run ends


def training(config: ConfigDict) -> ConfigDict:
    """Returns the config of the probe's training, at its own lag and learning rate."""
    config = config.copy_and_resolve_references()
    steps = config.advise.probe_steps
    with config.unlocked():
        del config["advise"]
    config.steps = steps
    return config


def rates(config: ConfigDict) -> list[float]:
    """Returns the probe's grid of learning rates, around that of the config."""
    half = np.sqrt(config.advise.probe_span)
    middle = config.optimizer.learning_rate
    return [float(f"{rate:.4g}") for rate in np.geomspace(middle / half, middle * half, NUM_RATES)]


def run_probe(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Makes the runs of a probe that have no record yet: NUM_SEEDS at a time, side by side.

    A learning rate counts as stable if none of its seeds collapses. One seed may live by luck.

    Returns:
      The record of each run, a line of cells-probe.jsonl.
    """
    base = training(config)

    def run(lag: int, rate: float) -> tuple[bool, list[dict]]:
        cell = base.copy_and_resolve_references()
        with cell.unlocked():
            cell.sweep = ConfigDict(
                dict(
                    max_lags=(lag,),
                    learning_rates=(rate,),
                    seeds=tuple(range(config.seed, config.seed + NUM_SEEDS)),
                    num_warm_starts=config.seed + NUM_SEEDS,
                    horizons=(base.steps,),
                    freeze_after=FREEZE_AFTER,
                    engine=None,
                    chunk_size=1,
                    num_workers=NUM_SEEDS,
                )
            )
        records = run_map(NAME, cell, workdir)
        return bool(collapse_law.runs(records).collapsed.any()), records

    return [record for records in probe(run, LAGS, rates(config)) for record in records]
