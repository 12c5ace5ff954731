"""A cell that is a training of the loop has the traces of the same training outside of a map.

The settings are those that a compiled cell cannot have, or that change the loss.
"""

import functools

import numpy as np
import pytest

from experiments.configs import small_map
from experiments.sweep import grid, trainings
from experiments.sweep.engine import LOOP, engine
from staleness_grpo.config.build import build_run
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.sweeps.program import DRIFT_METRICS, GUARD_METRICS, UPDATE_METRICS
from staleness_grpo.sweeps.records import SIGNIFICANT_DIGITS
from staleness_grpo.training.loop import train
from tests.helpers import bigram

MAX_LAG, EVERY, STEPS, RATE = 3, 3, 12, 0.3
SETTINGS = {
    "uniform": {"lag.schedule": "uniform"},
    "minibatches": {"updates_per_batch": 2},
    "minibatches with a proximal policy": {
        "updates_per_batch": 2,
        "correction.name": "decoupled_ppo",
    },
    "dual clip": {"correction.name": "dual_clip", "correction.cap": 1.01, "sweep.engine": LOOP},
    "as by default": {"sweep.engine": LOOP},
}


def cell_of(setting):
    """Returns the name and the config of the cell at the largest lag of a tiny map."""
    config = small_map.get_config()
    config.update(dict(steps=STEPS, num_prompts=4, group_size=4, eval_every=EVERY))
    bigram.put_into(config)
    config.sweep.update(
        dict(max_lags=(1, MAX_LAG), learning_rates=(RATE,), seeds=(5,), horizons=(STEPS,))
    )
    config.update_from_flattened_dict(SETTINGS[setting])
    grid.validate(config)
    assert engine(config) == LOOP
    name = f"S{MAX_LAG}-eta{RATE}-seed5"
    return name, grid.cells(config)[name]


@functools.cache
def records_of(setting):
    """Returns the records of the training outside of any map."""
    return tuple(train(build_run(cell_of(setting)[1])))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_cell_has_the_traces_of_its_training(setting, tmp_path):
    name, cell = cell_of(setting)
    found = trainings.train_cell(name, cell.to_dict(), tmp_path, freeze_after=10 * STEPS)
    records = records_of(setting)
    assert found["cell"] == name and found["steps_run"] == len(records) == STEPS
    assert (found["max_lag"], found["learning_rate"], found["seed"]) == (MAX_LAG, RATE, 5)
    assert found["schedule"] == cell.lag.schedule and found["trace_every"] == EVERY
    means = {*UPDATE_METRICS, *DRIFT_METRICS}
    assert means < set(found["traces"]) and not set(GUARD_METRICS) & set(found["traces"])
    # The record rounds to so many digits, and the file of records rounds nothing.
    close = functools.partial(np.testing.assert_allclose, rtol=10.0 ** (1 - SIGNIFICANT_DIGITS))
    for metric in means:
        values = np.array([record[metric] for record in records], float).reshape(-1, EVERY)
        # The first step has no gradient before it, and its cosine is left out of the mean.
        close(found["traces"][metric], np.nanmean(values, axis=1), atol=1e-9, err_msg=metric)
    evaluated = [record["eval_reward"] for record in records[::EVERY]]
    close(found["traces"]["eval_reward"], evaluated)
    close([found["first"], found["final"]], [evaluated[0], evaluated[-1]])
    # The lags of the cell's own file are those of the schedule.
    lags = [step["lag_histogram"] for step in read_jsonl(tmp_path / "metrics.jsonl")]
    assert lags == [record["lag_histogram"].tolist() for record in records]


def test_the_settings_change_what_a_cell_learns_from():
    """Otherwise a cell without them would have passed."""
    usual = records_of("as by default")
    # Every slot of a step has a lag of its own.
    assert max(np.count_nonzero(record["lag_histogram"]) for record in usual) == 1
    uniform = records_of("uniform")
    assert max(np.count_nonzero(record["lag_histogram"]) for record in uniform) > 1
    # An update has half of the groups.
    assert {sum(record["lag_histogram"]) for record in usual} == {4}
    assert {sum(record["lag_histogram"]) for record in records_of("minibatches")} == {2}
    last = {name: records_of(name)[-1]["param_norm"] for name in SETTINGS}
    assert len(set(last.values())) == len(SETTINGS), last
