"""The comparison of two checkouts: what it runs, and what it makes of the seconds."""

import json
import pathlib

import pytest

from experiments.performance import first_minute
from staleness_grpo.config.defaults import default_config


def test_each_kind_of_process_is_cold_or_has_the_shape_of_the_default(monkeypatch, tmp_path):
    started = []

    def run(command, checkout, variables):
        _, _, module, *words = command
        started.append((module, dict(word.split("=") for word in words), variables))
        if module == "experiments.benchmark":
            folder = pathlib.Path(started[-1][1]["--workdir"])
            names = ("step_seconds", "sampling_seconds", "update_seconds")
            (folder / "summary.json").write_text(json.dumps(dict.fromkeys(names, 0.5)))

    monkeypatch.setattr(first_minute, "run", run)
    assert first_minute.cold(tmp_path)["cold_seconds"] >= 0
    assert first_minute.step(tmp_path, one_core=True)["update_seconds_on_one_core"] == 0.5
    (training, _, variables), (_, flags, _) = started
    assert training == "experiments.train"
    assert variables["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert not pathlib.Path(variables["XDG_CACHE_HOME"]).exists()  # it was new, and is gone
    config = default_config()
    assert int(flags["--config.num_prompts"]) == config.num_prompts
    assert int(flags["--config.policy.d_model"]) == config.policy.d_model
    # Sums of two numbers of two digits: 12+34= has six tokens, 199 and the end four.
    assert flags["--config.benchmark.prompt_length"] == "6"
    assert flags["--config.benchmark.max_response_length"] == "4"


def test_ratios_are_medians_of_the_rounds_ratios():
    rounds = [
        {"cold_seconds.before": before, "cold_seconds.now": now}
        for before, now in ((100.0, 50.0), (60.0, 45.0), (80.0, 48.0))
    ]
    summary = first_minute.summarize(rounds)
    assert summary["now_over_before"] == {"cold_seconds": pytest.approx(0.6)}
    assert summary["median_seconds"] == {"cold_seconds.before": 80.0, "cold_seconds.now": 48.0}
    assert summary["seconds"]["cold_seconds.now"] == [50.0, 45.0, 48.0]
