"""The pipeline experiment: records, summary, figures, a second call, a map, and refusals."""

import math
import subprocess
import sys

import pytest

from experiments.common import cli
from experiments.common.claims import read as read_claims
from experiments.common.flag_parsing import load_config
from experiments.pipeline import __main__ as pipeline
from experiments.pipeline import target
from experiments.pipeline.grid import COLOCATED, cells, colocated, make_cluster
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, read_jsonl, write_json, write_jsonl
from staleness_grpo.staleness import trace
from tests.helpers.pages import described_fields

CONFIGS = cli.ROOT / "experiments" / "configs"


def tiny(**fields):
    config = load_config(CONFIGS / "pipeline.py")
    config.update(dict(seeds=(0, 1), steps=12, warm_up=2, max_lags=(1, 3), limits=(200, 400)))
    config.buffers = ("synchronous", "one_step_off", "bounded", "windowed")
    config.cluster.update(dict(num_groups=3, group_size=2, step_seconds=4.0))
    config.cluster.engines.update(dict(count=1, slots=4, tokens_per_second=20.0))
    config.cluster.lengths.update(dict(mean=100.0, sigma=1.0))
    config.update_from_flattened_dict(fields)
    return config


def training(max_lag, eta, seed, rewards):
    """Returns what the join reads of a sweep's cell."""
    traces = {"eval_reward": rewards}
    fields = {"max_lag": max_lag, "learning_rate": eta, "seed": seed, "trace_every": 5}
    return fields | {"traces": traces}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    sweep = folder / "sweep"
    sweep.mkdir()
    rewards = {0: [0.1] * 4 + [0.9] * 8, 1: [0.1] * 6 + [0.9] * 6, 3: [0.1] * 12}
    write_jsonl(sweep / "cells.jsonl", (training(lag, 0.1, 0, r) for lag, r in rewards.items()))
    write_json(sweep / "summary.json", {})
    config = tiny(map=str(sweep))
    pipeline.validate(config)
    cli.complete(pipeline.main, pipeline.draw, config, folder / "run")
    return folder / "run"


def test_every_cell_has_a_record_and_the_first_seed_a_trace(workdir):
    records = read_jsonl(workdir / "cells.jsonl")
    names = [cell.name for cell in cells(tiny())]
    # synchronous, colocated, one_step_off, and two rules at two lags; two limits and two seeds
    assert [record["cell"] for record in records] == names and len(names) == (3 + 4) * 4
    for record in records:
        assert set(record) == described_fields("cells.jsonl of `experiments.pipeline`")
    traces = {path.stem for path in (workdir / "traces").iterdir()}
    assert traces == {record["cell"] for record in records if record["seed"] == 0}
    lags = trace.read(
        workdir / "traces" / "windowed-S3-limit400-seed0.jsonl",
        num_steps=12,
        num_groups=3,
        max_lag=3,
    )
    (record,) = (r for r in records if r["cell"] == "windowed-S3-limit400-seed0")
    assert lags[2:].mean() == pytest.approx(record["lag_mean"])


def test_the_summary_averages_seeds_and_compares_with_both_synchronous_runs(workdir):
    records, summary = read_jsonl(workdir / "cells.jsonl"), read_json(workdir / "summary.json")
    times = {
        record["cell"]: record["seconds_per_step"] for record in records if record["limit"] == 400
    }
    numbers = summary["by_limit"]["400"]["bounded"]["1"]
    seeds = [times[f"bounded-S1-limit400-seed{seed}"] for seed in (0, 1)]
    assert numbers["seconds_per_step"] == pytest.approx(sum(seeds) / 2)
    assert numbers["seconds_per_step_range"] == [min(seeds), max(seeds)]
    for name in ("synchronous", COLOCATED):
        baseline = sum(times[f"{name}-S0-limit400-seed{seed}"] for seed in (0, 1)) / 2
        assert numbers[f"speedup_over_{name}"] == pytest.approx(baseline / (sum(seeds) / 2))
    claims = {claim.name: claim for claim in read_claims(summary)}
    assert claims["lags_within_bound"].holds and claims["lags_within_bound"].measured <= 0
    shares = claims["discarded_by_limit"]
    assert shares.holds is (shares.measured[0] < shares.measured[1])
    assert {"limit_200_speedup", "limit_400_enough_lag"} <= set(claims)


def test_a_map_and_the_simulation_give_the_time_to_a_reward(workdir):
    summary = read_json(workdir / "summary.json")
    rules = summary["by_limit"]["200"]
    zero, one, three = summary["time_to_target"]["200"]["bounded"]
    assert zero["seconds"] == zero["steps"] * rules["synchronous"]["0"]["seconds_per_step"]
    assert one["seconds"] == one["steps"] * rules["bounded"]["1"]["seconds_per_step"]
    assert zero["steps"] < one["steps"] and three["seconds"] is None


def test_a_second_call_simulates_nothing(workdir, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    cli.complete(pipeline.main, cli.draw_nothing, tiny(), workdir)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    figures = {path.stem for path in before if path.suffix == ".png"}
    parts = ("time", "lags", "idle", "timeline", "target")
    assert figures == {f"pipeline_{part}" for part in parts}


def test_a_broken_off_call_goes_on_where_it_was(workdir, tmp_path):
    config = tiny()
    lines = (workdir / "cells.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:20])
    pipeline.main(config, tmp_path)
    assert (tmp_path / "cells.jsonl").read_bytes() == b"".join(lines)


def test_colocated_has_all_accelerators_for_each_phase():
    cluster = make_cluster(tiny(**{"cluster.engines.count": 3}), limit=200)
    shared = colocated(cluster, 0.25)
    assert (shared.engines.count, shared.step_seconds) == (4, 1.0)
    with pytest.raises(FieldError, match="3 engines would become 6.66667"):
        colocated(cluster, 0.55)


def test_steps_to_the_target_are_those_of_a_lasting_rise():
    high, low = [0.9] * 10, [0.1] * 10
    rise = target.steps_to_target(training(1, 0.1, 0, low + high), 0.5)
    assert 45 <= rise <= 60  # the rise is at evaluation 10, and averages take some around it
    assert target.steps_to_target(training(1, 0.1, 0, high), 0.5) == 0
    assert target.steps_to_target(training(1, 0.1, 0, low), 0.5) == math.inf
    held_out = training(1, 0.1, 0, high)
    held_out["traces"]["heldout_reward"] = low  # decides, as in the outcomes of a map
    assert target.steps_to_target(held_out, 0.5) == math.inf
    lucky = low[:5] + [0.9] + low
    assert target.steps_to_target(training(1, 0.1, 0, lucky), 0.85) == math.inf


def test_the_median_of_seeds_is_infinite_if_half_of_them_fail():
    assert target.upper_median([30.0, math.inf]) == math.inf
    assert target.upper_median([30.0, 20.0, math.inf]) == 30
    high, low = [0.9] * 10, [0.1] * 10
    found = [training(1, 0.1, seed, rewards) for seed, rewards in enumerate((high, low, high))]
    assert target.median_steps(found, 0.5) == {(1, 0.1): 0.0}
    assert target.median_steps(found[:2], 0.5) == {(1, 0.1): math.inf}


def test_the_time_is_shortest_over_learning_rates_for_each_lag():
    steps = {(0, 0.1): 50.0, (0, 0.2): 40.0, (4, 0.1): 60.0, (4, 0.2): math.inf, (8, 0.1): math.inf}
    found = target.time_to_target(steps, {0: 10.0, 4: 3.0, 8: 2.0, 16: 1.0})
    keys = ("max_lag", "learning_rate", "steps", "seconds")
    assert [tuple(record[key] for key in keys) for record in found] == [
        (0, 0.2, 40, 400),
        (4, 0.1, 60, 180),
        (8, None, None, None),
    ]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("cluster.engines.count", 0, "cluster.engines.count"),
        ("cluster.engines.tokens_per_second", 0.0, "cluster.engines.tokens_per_second"),
        ("cluster.num_groups", 0, "cluster.num_groups"),
        ("cluster.group_size", 0, "cluster.group_size"),
        ("cluster.lengths.mean", 500.0, "cluster.lengths.mean"),
        ("cluster.lengths.path", "x", "cluster.lengths.path"),
        ("limits", (0,), "limits"),
        ("limits", (), "limits"),
        ("max_lags", (-1,), "max_lags"),
        ("max_lags", (1, 1), "max_lags"),
        ("buffers", ("newest",), "buffers"),
        ("seeds", (-1,), "seeds"),
        ("steps", 2, "steps"),
        ("warm_up", -1, "warm_up"),
        ("learner_share", 1.0, "learner_share"),
        ("learner_share", 0.3, "learner_share"),
        ("map", "/no/such/folder", "map"),
    ],
)
def test_a_config_that_cannot_run_is_refused(field, value, named):
    with pytest.raises(FieldError) as error:
        pipeline.validate(tiny(**{field: value}))
    assert error.value.field == named


def test_a_wrong_flag_is_one_line_and_touches_nothing(tmp_path):
    (tmp_path / "empty").write_text("")
    words = ["distribution=file", f"path={tmp_path}/empty"]
    flags = [f"--config.cluster.lengths.{word}" for word in words]
    command = [sys.executable, "-m", "experiments.pipeline", f"--workdir={tmp_path}/run", *flags]
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"--config.cluster.lengths.path={tmp_path}/empty: the file has no lengths"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["pipeline", "pipeline_limits"])
def test_shipped_configs_are_valid(name):
    pipeline.validate(load_config(CONFIGS / f"{name}.py"))


def test_the_best_lag_has_an_interval_over_seeds():
    """By hand: S = 1 is best for two seeds of three, S = 4 for the third."""
    low, high = 0.1, 0.9
    rise = {0: (2, 2, 2), 1: (3, 3, 20), 4: (9, 9, 5)}  # evaluations before the rise, by seed
    cells = [
        training(lag, 0.1, seed, [low] * before + [high] * 30)
        for lag, befores in rise.items()
        for seed, before in enumerate(befores)
    ]
    seconds = {0: 10.0, 1: 2.0, 4: 1.0}
    found = target.best_lag(cells, 0.5, seconds)
    steps = {key: value for key, value in target.median_steps(cells, 0.5).items()}
    by_hand = {lag: steps[lag, 0.1] * seconds[lag] for lag in rise}
    best = min(by_hand, key=lambda lag: by_hand[lag])
    assert (found["max_lag"], found["seconds"]) == (best, by_hand[best])
    assert found["flat_lags"] == [lag for lag, s in by_hand.items() if s <= 1.1 * by_hand[best]]
    low_end, high_end = found["max_lag_interval"]
    assert low_end <= best <= high_end and low_end < high_end  # seeds disagree
    assert found["seconds_interval"][0] <= found["seconds"] <= found["seconds_interval"][1]
    assert found["unreached_share"] == 0.0
    assert target.best_lag(cells, 2.0, seconds) is None
