"""A cell whose parameters become not finite has fallen, in its record and in its map's laws."""

import jax
import numpy as np
import pytest

from experiments.sweep import analysis, laws
from staleness_grpo.config.build import build_run
from staleness_grpo.scaling import outcomes, stability
from staleness_grpo.sweeps import trainings
from staleness_grpo.sweeps.program import cell_inputs, make_cell_program
from staleness_grpo.sweeps.records import cell_record
from staleness_grpo.training.loop import train
from tests.helpers.tiny import tiny_config

FIELDS = {
    "steps": 12,
    "eval_every": 3,
    "lag.max_lag": 2,
    "optimizer.learning_rate": 1e38,
    "surrogate.length_normalization": "constant",
}


@pytest.fixture(scope="module")
def cells():
    """Returns the record of the same cell by both engines."""
    config = tiny_config(**FIELDS)
    program = jax.jit(make_cell_program(config, 2, freeze_after=6))
    compiled = cell_record("x", config, jax.device_get(program(cell_inputs(config))))
    records = list(train(build_run(config)))
    return compiled, cell_record("x", config, trainings.traces_of(records, config))


@pytest.mark.parametrize("name", ["param_norm", "grad_norm", "update_norm"])
def test_each_norm_tells_it_also_that_of_the_last_update(name):
    config = tiny_config(**FIELDS | {"optimizer.learning_rate": 1e-3})
    traces = trainings.traces_of(list(train(build_run(config))), config)
    assert cell_record("x", config, traces)["finite"]
    traces[name] = np.array(traces[name], float)
    traces[name][-1] = np.inf
    record = cell_record("x", config, traces)
    assert not record["finite"] and record["collapse_step"] == record["steps_run"] == 12


@pytest.mark.parametrize("engine", [0, 1], ids=["compiled", "loop"])
def test_it_falls_where_it_ends(cells, engine):
    record = cells[engine]
    assert not record["finite"] and record["steps_run"] < record["steps"]
    assert record["collapse_step"] == record["steps_run"] and record["stayed_down"]
    assert outcomes.outcome(record, 1.0) == outcomes.COLLAPSED
    at_end = stability.at_horizons([record], (record["steps"],))
    assert at_end.collapsed.tolist() == [True]
    laws.constants([record])  # has no median of a block that is not finite
    summary = analysis.summarize_map([record], (record["steps"],))
    assert summary["num_collapsed"] == summary["outcomes"]["collapsed"] == 1
    assert record["update_norm"] is None or np.isfinite(record["update_norm"])
