"""Rewards of tasks that judge arrays: what is not finite is reported, scored 0 and counted."""

import jax
import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.sweeps import program as cell_program
from staleness_grpo.sweeps.records import cell_record
from staleness_grpo.tasks.enumerable import EnumerableTask
from staleness_grpo.training.loop import train
from staleness_grpo.training.rewards import FAILED, JUDGED, finite_rewards
from tests.helpers.tiny import tiny_config


def test_a_reward_that_is_not_finite_is_zero_failed_and_reported_once():
    reports = []
    rewards = np.array([[1.0, np.nan], [-np.inf, 0.5]])
    sound, outcome = finite_rewards(rewards, (2, 2), reports.append)
    np.testing.assert_array_equal(sound, np.float32([[1, 0], [0, 0.5]]))
    np.testing.assert_array_equal(outcome, [[JUDGED, FAILED], [FAILED, JUDGED]])
    assert reports == ["gave nan"] and outcome.dtype == np.int8
    with pytest.raises(FieldError, match=r"^task: its rewards have shape \(4,\): .* \(2, 2\)"):
        finite_rewards(np.zeros(4), (2, 2), reports.append)


@pytest.mark.slow
def test_the_loop_and_the_sweep_count_them_and_train_on(monkeypatch, capsys):
    sound_table = EnumerableTask.reward_table.func

    def broken_table(task):
        table = sound_table(task)
        table[:, ::3] = np.nan
        return table

    monkeypatch.setattr(EnumerableTask, "reward_table", property(broken_table))
    config = tiny_config(**{"eval_every": 3, "lag.max_lag": 1})
    records = list(train(build_run(config)))
    assert capsys.readouterr().err.count("a reward function gave nan; the sample has reward 0") == 1
    counts = [record["reward_errors"] for record in records]
    assert all(0 < count < 16 for count in counts) and not records[-1]["collapsed"]
    assert all(np.isfinite(record["grad_norm"]) and record["grad_norm"] > 0 for record in records)
    assert all(record["eval_reward_failures"] > 0 for record in records[::3])

    program = cell_program.make_cell_program(config, max_lag=1, freeze_after=100)
    traces = jax.device_get(jax.jit(program)(cell_program.cell_inputs(config)))
    np.testing.assert_array_equal(traces["reward_errors"], counts)
    np.testing.assert_allclose(traces["reward"], [record["reward"] for record in records])
    assert cell_record("cell", config, traces)["reward_errors"] == sum(counts)
