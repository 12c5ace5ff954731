"""How a step grows: points are made from sizes, exponents are slopes, and a point really runs."""

import json

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.performance import scaling, scaling_figures
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, write_json, write_jsonl

CONFIG = cli.ROOT / scaling.CONFIG


def test_the_shipped_sizes_can_all_be_measured_and_the_largest_batch_is_ten_times_the_default():
    config = load_config(CONFIG)
    scaling.validate(config)
    assert max(config.scaling.num_prompts) == 10 * config.num_prompts
    assert {axis for axis, _ in scaling.points(config)} == set(scaling.WORK)


def test_a_point_sets_its_size_alone():
    config = load_config(CONFIG)
    base = scaling.point_config(config, "num_prompts", config.num_prompts)
    assert "scaling" not in base
    for axis, value in scaling.points(config):
        point = scaling.point_config(config, axis, value).to_dict()
        base_fields, fields = (json.dumps(c, default=str) for c in (base.to_dict(), point))
        if base_fields == fields:
            assert value in (8, 16, 32, 128, 512, 1, 0)  # the value of the benchmark itself
    wide = scaling.point_config(config, "d_model", 256)
    assert wide.policy.num_heads * wide.policy.head_dim == wide.policy.d_model == 256
    assert scaling.point_config(config, "max_lag", 64).steps == 65
    assert scaling.point_config(config, "max_lag", 4).steps == config.steps


def test_an_exponent_is_the_slope_of_the_largest_values():
    values = [1, 2, 4, 8, 16]
    measured = [5.0] + [3 * value**1.5 for value in values[1:]]
    assert scaling.exponent(values, measured) == pytest.approx(1.5)
    assert scaling.exponent(values[::-1], measured[::-1]) == pytest.approx(1.5)
    assert scaling.exponent([0, 4, 16], [2.0, 2.0, 2.0]) == pytest.approx(0, abs=1e-12)


def records():
    return [
        dict.fromkeys(scaling.MEASURES, 0.1 * (1 + value))
        | {"size": axis, "value": value, "host_share": value / 1000, "state_bytes": 8}
        | {"drift_copy_seconds": 0.0}
        for axis in scaling.AXES
        for value in (2, 4, 8)
    ]


def test_the_summary_and_the_figures_have_every_size(tmp_path):
    summary = scaling.summarize(records())
    assert set(summary["by_size"]) == set(scaling.AXES)
    assert summary["largest_host_share"] == 0.008
    assert summary["largest_host_share_at"].endswith("=8")
    expected = np.polyfit(np.log([2, 4, 8]), np.log([3, 5, 9]), 1)[0]
    assert summary["by_size"]["d_model"]["exponents"]["step_seconds"] == pytest.approx(expected)
    write_json(tmp_path / "summary.json", summary)
    names = {path.name for path in scaling_figures.draw(tmp_path)}
    assert names == {"scaling_time.png", "scaling_memory.png"}


def test_points_with_a_record_are_not_measured_again_and_a_lost_one_is(tmp_path, monkeypatch):
    config, started = load_config(CONFIG), []
    known = [{"size": axis, "value": value} for axis, value in scaling.points(config)]
    write_jsonl(tmp_path / scaling.RECORDS, known[:3] + known[4:])

    def run(programme, name, *words, environment, num_processes):
        assert num_processes == 1
        started.append((name, environment["JAX_NUM_CPU_DEVICES"]))
        write_json(tmp_path / "points" / name / "measured.json", {"step_seconds": 1.0})

    monkeypatch.setattr(scaling.Programme, "run", run)
    found = scaling.measure(config, tmp_path)
    axis, value = known[3].values()
    assert started == [(f"{axis}_{value}", "1")]
    assert found[-1] == known[3] | {"step_seconds": 1.0}


@pytest.mark.slow
def test_a_point_is_measured_in_a_process(tmp_path):
    small = {"policy.d_model": 16, "policy.num_heads": 2, "policy.num_kv_heads": 2}
    small |= {"policy.head_dim": 8, "policy.d_ff": 16, "num_prompts": 2, "group_size": 2}
    config = load_config(CONFIG)
    config.update_from_flattened_dict(small)
    point = scaling.point_config(config, "max_lag", 4)
    (tmp_path / "point.json").write_text(point.to_json())
    scaling.main_of_point(tmp_path)
    measured = read_json(tmp_path / "measured.json")
    others = {"host_share", "drift_copy_seconds", "state_bytes"}
    assert set(measured) == {*scaling.MEASURES, *others}
    assert all(value > 0 for value in measured.values())


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"scaling.num_prompts": (8,)}, "scaling.num_prompts=.*: give two or more sizes"),
        ({"scaling.group_size": (0, 4)}, "scaling.group_size=.*: give two or more sizes"),
        ({"scaling.seconds": 0.0}, "scaling.seconds=0.0: give a number > 0"),
        ({"updates_per_batch": 2}, "updates_per_batch=2: a timed step learns once"),
        ({"scaling.devices": (1, 3)}, "num_prompts=8: the mesh cannot split a minibatch evenly"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(fields, line):
    config = load_config(CONFIG)
    config.update_from_flattened_dict(fields)
    with pytest.raises(FieldError, match=line):
        scaling.validate(config)
