"""The training experiment: its files, its second call, and its end when a number is not finite."""

import importlib
import json
import pathlib

import pytest

from experiments import train
from staleness_grpo import metrics, validation
from tests.test_train import tiny_config

CONFIGS = sorted(path.stem for path in pathlib.Path("experiments/configs").glob("[!_]*.py"))


def test_files_and_second_call(tmp_path, capsys):
    config = tiny_config(**{"steps": 4, "eval_every": 2, "lag.max_lag": 1})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')  # of a run that was broken off
    train.main(config, tmp_path)
    records = metrics.read_jsonl(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert metrics.read_jsonl(tmp_path / "metrics.interrupted-1.jsonl") == [{"step": 0}]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["learner_steps"] == 4 and summary["collapsed"] is False
    assert summary["first_eval_reward"] == records[0]["eval_reward"]
    assert 0 <= summary["final_eval_reward"] <= 1

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train.main(config, tmp_path)
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_collapse_is_marked_with_everything_on_disk(tmp_path, capsys):
    diverging = {"steps": 20, "optimizer.name": "sgd", "optimizer.learning_rate": 1e38, "save_policy": True}
    train.main(tiny_config(**diverging), tmp_path)
    assert "the run collapsed, so its policy is not saved" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()
    records = metrics.read_jsonl(tmp_path / "metrics.jsonl")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["collapsed"] is True and summary["final_eval_reward"] is None
    assert records[-1]["collapsed"] and summary["learner_steps"] == len(records) < 20


@pytest.mark.parametrize("name", ["arithmetic", "benchmark"])
def test_shipped_training_configs_are_valid(name):
    validation.validate(importlib.import_module(f"experiments.configs.{name}").get_config(), num_devices=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_says_how_to_run_it(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    assert len(module.get_config())
    assert "python -m experiments." in module.__doc__ or "bash launch/" in module.__doc__
