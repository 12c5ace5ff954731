"""What makes a training of the loop a cell of a map: its traces, and when it ends early."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.sweeps import trainings
from staleness_grpo.sweeps.program import CEILING_EVERY, FREEZE_FRACTION

CONFIG = ConfigDict(dict(eval_every=2))


def records_of(rewards, every=2):
    """Returns the records of a training with these evaluation rewards."""
    records = []
    for reward in rewards:
        records.append({"eval_reward": reward, "gradient_cosine_ceiling": 0.5})
        records += [{} for _ in range(every - 1)]
    for step, record in enumerate(records):
        record |= {"step": step, "reward": step / 10, "entropy": None if step == 3 else 1.0}
    return records


def frozen_by_brute_force(rewards, every, freeze_after, floor):
    """Returns the step at which a compiled cell ends: its loop over blocks, written plainly."""
    peak, last_high, block = floor, 0, 0
    while block < len(rewards) and (block - last_high) * every <= freeze_after:
        peak = max(peak, rewards[block])
        if not rewards[block] - floor < FREEZE_FRACTION * (peak - floor):
            last_high = block
        block += 1
    return block * every


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_the_loop_freezes_where_a_compiled_cell_does(floor):
    rng = np.random.default_rng(0)
    ended_early = 0
    for trial in range(200):
        rewards = np.clip(floor + rng.gamma(0.4, 0.5, size=12), floor, 1)
        freeze_after = int(rng.choice([2, 3, 6]))
        expected = frozen_by_brute_force(rewards, 2, freeze_after, floor)
        ends = trainings.freeze_rule(CONFIG, freeze_after, floor)
        records = records_of(rewards)
        found = next((n for n in range(1, 25) if ends(records[:n])), 24)
        assert found == expected, trial
        ended_early += expected < 24
    assert 50 < ended_early < 200


def test_traces_end_with_nan_where_a_training_ended_inside_a_block():
    records = records_of([0.1, 0.2, 0.3])[:5]
    traces = trainings.traces_of(records, CONFIG)
    assert traces["steps_run"] == 6
    np.testing.assert_array_equal(traces["reward"], [0, 0.1, 0.2, 0.3, 0.4, np.nan])
    np.testing.assert_array_equal(traces["entropy"], [1, 1, 1, np.nan, 1, np.nan])
    np.testing.assert_array_equal(traces["eval_reward"], [0.1, 0.2, 0.3])
    assert "drift_from_behavior" not in traces and "heldout_reward" not in traces


def test_the_ceiling_is_kept_where_a_compiled_cell_measures_it():
    traces = trainings.traces_of(records_of(np.linspace(0, 1, 2 * CEILING_EVERY)), CONFIG)
    measured = np.flatnonzero(np.isfinite(traces["gradient_cosine_ceiling"]))
    assert list(measured) == [0, CEILING_EVERY]
