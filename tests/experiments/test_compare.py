"""Trainings over each other: seeds are averaged with a t interval, labels are what differs."""

import json
import math

import numpy as np
import pytest

from experiments.common.reading import read_workdir
from experiments.compare import __main__ as compare
from experiments.compare import analysis, figures
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import write_json, write_jsonl
from tests.helpers.tiny import tiny_config


def training(folder, values, seed=0, **overrides):
    """Writes a workdir whose rewards and entropies have these values."""
    folder.mkdir()
    config = tiny_config(seed=seed, **overrides)
    write_json(folder / "config.json", config.to_dict())
    records = [
        {"step": step, "entropy": value, "eval_reward": value, "collapsed": False}
        for step, value in enumerate(values)
    ]
    write_jsonl(folder / "metrics.jsonl", records)
    return folder


def found(*folders):
    return analysis.kinds([read_workdir(str(folder)) for folder in folders])


def test_the_interval_is_that_of_students_t(tmp_path):
    values = [[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]]
    folders = [training(tmp_path / str(seed), v, seed) for seed, v in enumerate(values)]
    (kind,) = found(*folders)
    assert kind.label == "3 seeds"
    line = analysis.curve(kind.runs, "eval_reward")
    np.testing.assert_array_equal(line.steps, [0, 1])
    np.testing.assert_allclose(line.mean, [3.0, 4.0])
    # The 97.5 % quantile of t with two degrees of freedom, from a table; s = sqrt(7).
    half = 4.30265 * math.sqrt(7 / 3)
    np.testing.assert_allclose(line.low, [3 - half, 4], rtol=1e-5)
    np.testing.assert_allclose(line.high, [3 + half, 4], rtol=1e-5)


def test_a_metric_of_every_step_is_smoothed_before_it_is_averaged(tmp_path):
    folders = [training(tmp_path / str(seed), [0.0, 1.0, 2.0], seed) for seed in (0, 1)]
    (kind,) = found(*folders)
    np.testing.assert_allclose(analysis.curve(kind.runs, "entropy").mean, [0.0, 0.5, 1.0])
    assert analysis.curve(kind.runs, "ess") is None


def test_labels_are_the_fields_that_differ_and_nothing_that_has_no_effect(tmp_path):
    lag, rate = {"lag.max_lag": 2}, {"optimizer.learning_rate": 0.5}
    kinds = found(
        training(tmp_path / "a", [1.0]),
        training(tmp_path / "b", [1.0], **lag, **{"checkpoint.save_every": 7}),
        training(tmp_path / "c", [2.0], 1, **lag, **{"sinks.wandb": True}),
        training(tmp_path / "d", [1.0], **lag, **rate),
    )
    assert [(kind.label, len(kind.runs)) for kind in kinds] == [
        ("lag.max_lag = 0, optimizer.learning_rate = 0.02", 1),
        ("lag.max_lag = 2, optimizer.learning_rate = 0.02 (2 seeds)", 2),
        ("lag.max_lag = 2, optimizer.learning_rate = 0.5", 1),
    ]
    assert analysis.curve(kinds[0].runs, "entropy").low is None


def test_a_section_of_another_command_makes_no_other_training(tmp_path):
    folders = [training(tmp_path / name, [1.0], seed) for seed, name in enumerate("abc")]
    for folder, section in zip(folders, ("paired", "sweep"), strict=False):
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", config | {section: {"max_lags": [0]}})
    assert [kind.label for kind in found(*folders)] == ["3 seeds"]


def test_a_mean_ends_where_the_shortest_training_ends(tmp_path):
    long, short = training(tmp_path / "a", [1.0] * 4), training(tmp_path / "b", [1.0] * 2, 1)
    last = json.loads((short / "metrics.jsonl").read_text().splitlines()[-1])
    with (short / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | {"step": 2, "entropy": None, "collapsed": True}) + "\n")
        file.write('{"step": 3, "entr')  # a run that is being written
    (kind,) = found(long, short)
    assert list(analysis.curve(kind.runs, "entropy").steps) == [0, 1, 2]
    assert analysis.notes(kind) == [
        "1 of 2 collapsed",
        "drawn up to step 2, the end of the shortest; the longest has 4 steps",
    ]


def test_the_figure_has_a_line_for_each_kind_and_a_band_where_there_are_seeds(tmp_path):
    folders = [training(tmp_path / str(seed), [1.0, 2.0], seed) for seed in (0, 1)]
    figure = figures.compared(found(*folders, training(tmp_path / "c", [0.0], steps=9)))
    reward, *others = figure.axes
    assert (len(reward.lines), len(reward.collections)) == (2, 1)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["steps = 6 (2 seeds)", "steps = 9"]
    assert "not measured" in [text.get_text() for text in others[1].texts]


def test_the_command_writes_the_figure_alone(tmp_path, monkeypatch, capsys):
    folders = [training(tmp_path / str(seed), [1.0, 2.0], seed) for seed in (0, 1)]
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    compare.main([str(folder) for folder in folders])
    assert capsys.readouterr().out == "2 seeds\ncomparison.png\n"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "comparison.png"])
    compare.main([str(folders[0]), "--output=figure.pdf"])
    assert capsys.readouterr().out == "one training\nfigure.pdf\n"
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_wrong_input_is_one_line(tmp_path, capsys):
    good, same = training(tmp_path / "a", [1.0]), training(tmp_path / "b", [1.0])
    empty = training(tmp_path / "c", [], 1)
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "config.json", {"sweep": {}})
    form = "write python -m experiments.compare WORKDIR... [--output=FILE.png]"
    cases = [
        ([], form),
        ([good, "--outptu=x.png"], f"unrecognized arguments: --outptu=x.png: {form}"),
        ([good, "--output=x.jpeg"], "--output=x.jpeg: give a name that ends in .png or .pdf"),
        ([good, "--output=/absent/x.png"], "--output=/absent/x.png: its folder does not exist"),
        ([tmp_path / "absent"], "there is no such folder"),
        ([good, other], f"WORKDIR={other}: this folder is of experiments.sweep: give folders of"),
        ([good, same], f"WORKDIR={same}: {good} has the same config and seed: give one of the two"),
        ([empty], f"WORKDIR={empty}: it has no record yet"),
    ]
    for arguments, words in cases:
        with pytest.raises(SystemExit) as end:
            compare.main([str(argument) for argument in arguments])
        assert end.value.code == 2
        out, errors = capsys.readouterr()
        assert words in errors and errors.count("\n") == 1 and out == ""


def test_an_error_of_a_folder_names_it(tmp_path):
    with pytest.raises(FlagError, match=f"^WORKDIR={tmp_path}: no workdir"):
        read_workdir(str(tmp_path))


def test_a_legend_of_many_fields_stays_inside_the_figure():
    fields = "  ".join(f"section{number}.field={number}" for number in range(20))
    found = [
        analysis.Kind(
            f"{name}  {fields}", [[{"step": 0, "eval_reward": 0.5}, {"step": 1, "eval_reward": 1}]]
        )
        for name in ("one", "two")
    ]
    figure = figures.compared(found)
    figure.draw_without_rendering()
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0 and legend.y1 <= whole.y1


def test_a_metric_that_is_constant_but_for_rounding_is_drawn_as_a_constant():
    values = (1.0, 1.0 + 1e-7, 1.0 - 1e-7)
    records = [
        {"step": step, "eval_reward": step / 4, "ess": value} for step, value in enumerate(values)
    ]
    figure = figures.compared([analysis.Kind("one", [records])])
    panels = {axis.get_title(): axis for axis in figure.axes}
    low, high = panels["effective sample size / tokens"].get_ylim()
    assert low == pytest.approx(0.9) and high == pytest.approx(1.1)
    low, high = panels["reward of the current policy"].get_ylim()
    assert high - low < 0.6
