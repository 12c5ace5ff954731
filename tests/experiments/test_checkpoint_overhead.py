"""The cost of a save is the loop's wait for it, in both of the calls that the loop makes."""

import time

import pytest

from experiments.performance import checkpoint_overhead
from staleness_grpo.errors import FieldError
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.run import Run
from tests.helpers.tiny import tiny_config

# The first save is before step 4, and then every fourth step has one.
SETTINGS = {"lag.max_lag": 3, "checkpoint.save_every": 2}


def test_waits_are_counted(monkeypatch, tmp_path):
    config = tiny_config(**SETTINGS, steps=16)
    take_snapshot, saved = Run.snapshot, []

    def slow_snapshot(run):
        time.sleep(0.03)
        saved.append(run.step)
        return take_snapshot(run)

    def slow_save(checkpoints, snapshot):  # writes nothing
        time.sleep(0.05)
        saved.append(snapshot.step)

    monkeypatch.setattr(Run, "snapshot", slow_snapshot)
    monkeypatch.setattr(Checkpoints, "save", slow_save)
    summary = checkpoint_overhead.measure(config, tmp_path)
    # The save at the end of the run, before step 16, is not counted.
    assert saved == [4, 4, 8, 8, 12, 12, 16, 16] and summary["saves"] == 3
    assert summary["wait_seconds"] >= 0.08  # the two sleeps
    assert summary["wait_share"] == pytest.approx(summary["wait_seconds"] / summary["step_seconds"])


def test_a_run_too_short_is_refused():
    hint = "^steps=15: give at least 16, so that there are 3 saves after step lag.max_lag"
    with pytest.raises(FieldError, match=hint):
        checkpoint_overhead.validate(tiny_config(**SETTINGS, steps=15))
