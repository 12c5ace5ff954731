"""What a save costs is what the loop waits for it, in both of the calls that it makes."""

import time

import pytest

from experiments import checkpoint_overhead
from staleness_grpo.checkpoint import Checkpoints
from staleness_grpo.config import ConfigError
from tests.test_train import tiny_config

SETTINGS = {"lag.max_lag": 3, "checkpoint.save_every": 2}  # the first save before step 4, then every fourth step


def test_waits_are_counted(monkeypatch, tmp_path):
    config = tiny_config(**SETTINGS, steps=16)
    saved, calls = [], {"snapshot": 0.03, "save": 0.05}
    for name, seconds in calls.items():
        original = getattr(Checkpoints, name)

        def slow(self, argument, name=name, original=original, seconds=seconds):
            time.sleep(seconds)
            saved.append(argument.step)
            return original(self, argument) if name == "snapshot" else None  # nothing is written

        monkeypatch.setattr(Checkpoints, name, slow)
    found = checkpoint_overhead.measure(config, tmp_path)
    assert saved == [4, 4, 8, 8, 12, 12, 16, 16] and found["saves"] == 3  # the end's own save is none of them
    assert found["wait_seconds"] >= 0.08  # the two sleeps
    assert found["wait_share"] == pytest.approx(found["wait_seconds"] / found["step_seconds"])


def test_a_run_too_short_is_refused():
    with pytest.raises(ConfigError, match="--config.steps=15: give at least 16, for 3 saves after lag.max_lag"):
        checkpoint_overhead.validate(tiny_config(**SETTINGS, steps=15))
