"""Systems without Linux's own calls, such as macOS, train and sweep too."""

import os

import pytest

from staleness_grpo.runtime import cores


def test_without_affinities_all_cores_count(monkeypatch):
    assert cores.usable_cores() == sorted(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    assert cores.usable_cores() == list(range(os.cpu_count()))
    cores.pin_to(0)


@pytest.mark.slow
def test_a_training_and_a_sweep_need_no_call_that_only_linux_has(run_on_devices, tmp_path):
    printed = run_on_devices("without_linux_calls", tmp_path / "run", num_devices=1).splitlines()
    assert (tmp_path / "run" / "training.png").exists() and printed[-1] == "cell"
