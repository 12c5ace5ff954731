"""The training experiment: its files, its second call, and its end when a number is not finite."""

import importlib
import json
import pathlib

import numpy as np
import pytest

from experiments.common import cli
from experiments.train import __main__ as train
from experiments.train import analysis, figures
from staleness_grpo.config import validation
from staleness_grpo.runtime.records import read_jsonl
from tests.helpers.tiny import tiny_config

CONFIGS = sorted(path.stem for path in pathlib.Path("experiments/configs").glob("[!_]*.py"))


def run(config, workdir):
    cli.complete(train.main, train.draw, config, workdir)


def test_files_and_second_call(tmp_path, capsys):
    config = tiny_config(**{"steps": 4, "eval_every": 2, "lag.max_lag": 1})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')  # of a run that was broken off
    run(config, tmp_path)
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert read_jsonl(tmp_path / "metrics.interrupted-1.jsonl") == [{"step": 0}]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["learner_steps"] == 4 and summary["collapsed"] is False
    assert summary["first_eval_reward"] == records[0]["eval_reward"]
    assert 0 <= summary["final_eval_reward"] <= 1

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    assert tmp_path / "training.png" in before
    capsys.readouterr()
    (tmp_path / "training.png").unlink()
    run(config, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("finished already; its figures are drawn again from its records")
    assert said[1:] == [str(tmp_path / "summary.json"), str(tmp_path / "training.png")]
    assert before == files()


def test_a_summary_counts_the_alarms_of_a_guard_if_there_is_one():
    steps = [{"time_step": 0.1, "collapsed": False, "guard_alarm": i % 3 == 0} for i in range(7)]
    assert analysis.summarize(steps)["guard_alarms"] == 3
    unguarded = [{"time_step": 0.1, "collapsed": False} for _ in range(7)]
    assert "guard_alarms" not in analysis.summarize(unguarded)


def test_a_panel_without_measurements_says_so():
    """A run without evaluations, drift or consecutive gradients still has its curves."""
    steps = [{"step": step, "entropy": 0.5, "ess": 1.0} for step in range(20)]
    figure = figures.curves({"S = 0": steps})
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    measured = [axis.get_title() for axis, text in zip(figure.axes, texts, strict=True) if not text]
    assert measured == ["entropy (nats)", "effective sample size / tokens"]


def test_the_scale_of_a_guard_is_drawn_where_there_is_one():
    steps = [{"step": step, "ess": 1.0, "guard_scale": 0.5 ** (step > 9)} for step in range(20)]
    axis = figures.curves({"S = 0": steps}).axes[4]
    assert "guard" in axis.get_title()
    np.testing.assert_array_equal(axis.lines[-1].get_ydata(), [1.0] * 10 + [0.5] * 10)


def test_collapse_is_marked_with_everything_on_disk(tmp_path, capsys):
    diverging = {
        "steps": 20,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 1e38,
        "save_policy": True,
    }
    train.main(tiny_config(**diverging), tmp_path)
    assert "the run collapsed, so its policy is not saved" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()
    records = read_jsonl(tmp_path / "metrics.jsonl")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["collapsed"] is True and summary["final_eval_reward"] is None
    assert records[-1]["collapsed"] and summary["learner_steps"] == len(records) < 20


@pytest.mark.parametrize("name", ["arithmetic", "benchmark"])
def test_shipped_training_configs_are_valid(name):
    validation.validate(
        importlib.import_module(f"experiments.configs.{name}").get_config(), num_devices=1
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_says_how_to_run_it(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    assert len(module.get_config())
    assert "python -m experiments." in module.__doc__ or "bash launch/" in module.__doc__
