"""The advisor: answers from maps, trainings and probes, refusals, and what it leaves open."""

import subprocess
import sys

import numpy as np
import pytest

from experiments.advise import __main__ as advisor
from experiments.advise import probing, question, sources
from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.sweep import grid
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import plain, read_json, read_jsonl, write_json, write_jsonl
from staleness_grpo.scaling import collapse_law
from staleness_grpo.scaling.advice import advise
from staleness_grpo.scaling.early_sign import SMALL_MODELS
from staleness_grpo.scaling.prior import Sign, vague
from tests.helpers.collapses import law, record

CONFIGS = cli.ROOT / "experiments" / "configs"
TRUTH = law(0.9)


def asked(**fields):
    config = load_config(CONFIGS / "advise.py")
    config.update_from_flattened_dict({f"advise.{name}": value for name, value in fields.items()})
    return config


def answered(config, folder):
    """Runs the advisor as the command does; returns its summary."""
    question.validate(config)
    cli.complete(advisor.main, advisor.draw, config, folder)
    return read_json(folder / "summary.json")


def boundary(max_lag, num_steps):
    """Returns eta_max by the law that made the records, where the cap is far."""
    exact = TRUTH["t_inf"] * (1 + TRUTH["s0"] / max_lag) / num_steps
    return TRUTH["rate"] * exact ** (1 / TRUTH["b"])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Returns a finished workdir of a sweep, whose records follow the law."""
    folder = tmp_path_factory.mktemp("sweep")
    config = load_config(CONFIGS / "scaling_laws.py")
    config.sweep.update(dict(max_lags=(0, 1, 8, 64), seeds=(0, 1, 2)))
    rng = np.random.default_rng(1)
    with config.unlocked():
        del config["variants"]
    cells = grid.cells(config)
    rows = [record(name, cell, TRUTH, rng) for name, cell in cells.items()]
    write_jsonl(folder / "cells.jsonl", rows)
    write_json(folder / "config.json", plain(config.to_dict()))
    write_json(folder / "summary.json", {})
    return folder


def test_the_answer_from_a_map_holds_the_truth(sweep, tmp_path):
    config = asked(runs=(str(sweep),), horizon=600, max_lag=8, learning_rate=1e-3)
    summary = answered(config, tmp_path / "advice")
    for row in summary["by_lag"]:
        found = row["eta_max"]
        assert found["low"] < found["value"] < found["high"]
        if row["max_lag"] >= 4:  # the cap is far
            assert found["low"] <= boundary(row["max_lag"], 600) <= found["high"]
            assert row["binds"] == "lag and horizon"
        assert row["safe"]["value"] < found["value"]
    rates = [row["eta_max"]["value"] for row in summary["by_lag"]]
    assert rates == sorted(rates, reverse=True)
    page = (tmp_path / "advice" / "advice.md").read_text()
    assert f"{rates[0]:.2g}" in page and summary["recommendation"] in page


def test_the_risk_is_that_of_the_law(sweep, tmp_path):
    """At the boundary it is about one half, far below it nearly 0, far above it nearly 1."""
    for factor, low, high in ((1.0, 0.25, 0.75), (0.4, 0.0, 0.1), (2.5, 0.9, 1.0)):
        rate = factor * boundary(16, 600)
        config = asked(runs=(str(sweep),), horizon=600, max_lag=16, learning_rate=rate)
        risk = answered(config, tmp_path / f"{factor}")["risk"]
        assert low <= risk["value"] <= high
        assert risk["low"] <= risk["value"] <= risk["high"]


def few(sweep, folder, keep, with_traces=False):
    """Writes a sweep's workdir with the records that `keep` chooses."""
    folder.mkdir()
    rows = [row for row in read_jsonl(sweep / "cells.jsonl") if keep(row)]
    assert rows
    if not with_traces:
        rows = [row | {"traces": {}} for row in rows]
    write_jsonl(folder / "cells.jsonl", rows)
    for name in ("config.json", "summary.json"):
        write_json(folder / name, read_json(sweep / name))
    return folder


def test_fewer_runs_give_a_wider_answer(sweep, tmp_path):
    one_seed = few(sweep, tmp_path / "few", lambda row: row["seed"] == 0 and row["max_lag"] == 8)
    widths = []
    for number, folder in enumerate((sweep, one_seed)):
        summary = answered(asked(runs=(str(folder),)), tmp_path / f"{number}")
        at_64 = summary["by_lag"][-1]["eta_max"]
        widths.append(at_64["high"] / at_64["low"])
    assert widths[1] > widths[0]
    notes = (tmp_path / "1" / "advice.md").read_text()
    assert "The runs have one lag" in notes and "No run is synchronous" in notes


def test_stable_runs_alone_bound_the_answer_from_below(sweep, tmp_path):
    folder = few(
        sweep, tmp_path / "few", lambda row: row["max_lag"] == 8 and row["learning_rate"] == 3.5e-4
    )
    summary = answered(asked(runs=(str(folder),)), tmp_path / "advice")
    assert all(row["eta_max"]["high"] is None for row in summary["by_lag"])
    page = (tmp_path / "advice" / "advice.md").read_text()
    assert "| 8 | above " in page and "No run collapsed" in page
    # What is called likely to be stable was tried, or is close to it.
    at_8 = next(row for row in summary["by_lag"] if row["max_lag"] == 8)
    assert 0.7 * 3.5e-4 < at_8["eta_max"]["low"] < 2 * 3.5e-4


def test_where_runs_bound_one_side_alone_the_early_sign_gives_the_other(sweep, tmp_path):
    def keep(row):
        return row["max_lag"] == 8 and row["learning_rate"] == 3.5e-4

    folder = few(sweep, tmp_path / "few", keep, with_traces=True)
    summary = answered(asked(runs=(str(folder),)), tmp_path / "advice")
    for row in summary["by_lag"]:
        if row["max_lag"] in (8, 16, 32):  # near the lag that was seen
            found = row["eta_max"]
            assert found["low"] <= boundary(row["max_lag"], 600) <= found["high"]
    page = (tmp_path / "advice" / "advice.md").read_text()
    assert "is used as a sign" in page and "come from that sign alone" in page


def test_runs_without_lag_are_refused(sweep, tmp_path):
    folder = few(sweep, tmp_path / "few", lambda row: row["max_lag"] == 0)
    with pytest.raises(FlagError, match="no run has a lag"):
        answered(asked(runs=(str(folder),)), tmp_path / "advice")
    assert not (tmp_path / "advice" / "summary.json").exists()


def test_a_probe_goes_on_where_it_was_and_finds_the_boundary(tmp_path):
    """Its runs have records already, so that nothing is trained."""
    folder = tmp_path / "advice"
    folder.mkdir()
    config = asked(probe=True, horizon=600)
    base = probing.training(config)
    rng = np.random.default_rng(5)
    rows = []
    for lag in (0, 1, 16):
        for rate in probing.rates(config):
            for seed in (0, 1):
                cell = base.copy_and_resolve_references()
                cell.lag.max_lag, cell.optimizer.learning_rate, cell.seed = lag, rate, seed
                rows.append(record(f"S{lag}-eta{rate:g}-seed{seed}", cell, TRUTH, rng))
    write_jsonl(folder / "cells-probe.jsonl", rows)
    summary = answered(config, folder)
    assert summary["num_runs"] <= 24 and 0 < summary["num_collapsed"] < summary["num_runs"]
    assert summary["probe_learner_steps"] <= 24 * 300
    for row in summary["by_lag"]:
        if row["max_lag"] >= 4:
            assert row["eta_max"]["low"] <= boundary(row["max_lag"], 600) <= row["eta_max"]["high"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "runs"),
        ({"probe": True, "runs": ("somewhere",)}, "probe"),
        ({"runs": ("/no/such/folder",)}, "runs"),
        ({"probe": True, "horizon": 0}, "horizon"),
        ({"probe": True, "max_lags": ()}, "max_lags"),
        ({"probe": True, "max_lags": (-1,)}, "max_lags"),
        ({"probe": True, "probe_steps": 151}, "probe_steps"),
        ({"probe": True, "probe_span": 1.0}, "probe_span"),
        ({"probe": True, "learning_rate": float("nan")}, "learning_rate"),
        ({"probe": True, "b1": 1.0}, "b1"),
        ({"probe": True, "format": "verl"}, "format"),
        ({"logs": ("/no/such/file",), "format": "verl"}, "logs"),
        ({"logs": ("/no/such/file",), "format": "nothing"}, "format"),
        (
            {"logs": (__file__,), "format": "csv", "columns": ("reward=a", "reward=b")},
            "columns",
        ),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(fields, named):
    with pytest.raises(FieldError) as error:
        question.validate(asked(**fields))
    assert error.value.field == f"advise.{named}"


def test_a_folder_without_records_is_refused(sweep, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("config.json", "summary.json"):
        write_json(folder / name, read_json(sweep / name))
    with pytest.raises(FlagError, match="neither cells.jsonl nor metrics.jsonl"):
        answered(asked(runs=(str(folder),)), tmp_path / "advice")


def trained(folder, max_lag=8, collapse=None, num_steps=200):
    """Writes a finished workdir of a training whose lag rises to S in its first S steps."""
    folder.mkdir()
    config = load_config(CONFIGS / "arithmetic.py")
    config.lag.max_lag, config.steps, config.optimizer.learning_rate = max_lag, num_steps, 1e-3
    records = []
    for step in range(num_steps):
        lag = min(step, max_lag)
        fields = {"step": step, "lag_mean": float(lag), "collapsed": False}
        # Blocks of ten steps: the mean from step 10 to 50 is 0.4.
        fields["log_ratio_second_moment"] = 0.4 if 10 <= step < 50 else 7.0
        if step % 10 == 0:
            fallen = collapse is not None and step >= collapse
            fields["eval_reward"] = 0.0 if fallen else 0.8
        records.append(fields)
    write_jsonl(folder / "metrics.jsonl", records)
    write_json(folder / "config.json", plain(config.to_dict()))
    write_json(folder / "summary.json", {"learner_steps": num_steps})
    return folder


def test_a_training_is_a_run_at_its_full_lag_with_its_sign(tmp_path):
    folder = trained(tmp_path / "training", collapse=100)
    known = sources.gather(asked(runs=(str(folder),)), tmp_path)
    assert known.at == (8.0, 1e-3) and known.runs.collapsed.all()
    assert known.runs.step[0] == pytest.approx(100, abs=20) and known.runs.resolution[0] == 10
    (sign,) = known.signs
    assert sign.log_time == pytest.approx(SMALL_MODELS.log_time(0.4)) and sign.max_lag == 8


def test_signs_count_only_where_runs_bound_one_side(sweep):
    runs = collapse_law.runs(read_jsonl(sweep / "cells.jsonl"))
    wrong = (Sign(8.0, 1e-3, np.log(5.0), 0.01),)  # an early collapse, said with certainty
    answers = [
        advise(runs, vague(), 1e-3, 600, (8,), signs=signs).by_lag[0].eta_max.value
        for signs in ((), wrong)
    ]
    assert answers[0] == answers[1]
    stable = runs[~runs.collapsed & (runs.max_lag == 8)]
    with_sign = advise(stable, vague(), 1e-3, 600, (8,), signs=wrong).by_lag[0].eta_max
    without = advise(stable, vague(), 1e-3, 600, (8,)).by_lag[0].eta_max
    assert with_sign.high is not None and without.high is None


def test_a_lag_that_is_no_number_is_named():
    with pytest.raises(FlagError, match="--max_lags=1,two: give whole numbers"):
        advisor._whole_numbers("max_lags", ("1", "two"))


def test_an_error_names_the_flag_that_was_given_and_leaves_no_folder(tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")
    words = [f"--workdir={tmp_path}/run", f"--log={tmp_path}/log.jsonl", "--format=verll"]
    command = [sys.executable, "-m", "experiments.advise", *words]
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "--format=verll: did you mean verl?\n")
    assert not (tmp_path / "run").exists()


def test_rates_that_survive_without_learning_are_named():
    def run(rate, rewards):
        traces = {"eval_reward": rewards}
        fields = {"learning_rate": rate, "finite": True, "collapse_step": None, "max_lag": 1}
        return fields | {"traces": traces, "lowest_reward": 0.0}

    rising, flat = list(np.linspace(0.1, 0.9, 20)), [0.5] * 20
    learning = [run(1e-3, rising), run(3e-3, rising)]
    stalled = [run(1e-2, flat), run(1e-1, flat)]
    (note,) = sources.stall_notes([*learning, *stalled])
    assert "largest rate that learned here is 0.003, and 2 runs above it survived" in note
    assert sources.stall_notes([*learning, run(1e-4, flat), run(2e-4, flat)]) == ()
    assert sources.stall_notes(stalled) == ()  # too few to say
    (note,) = sources.stall_notes([*stalled, *stalled])
    assert note.endswith("none of these runs learned.")


def test_a_run_whose_learning_rate_fell_is_said_to_be_one(tmp_path):
    changes = {"as it was": {}, "guard": {"guard_scale": 0.5}, "schedule": {"learning_rate": 1e-4}}
    for name, fields in changes.items():
        path = trained(tmp_path / name) / "metrics.jsonl"
        records = read_jsonl(path)
        steady = {"learning_rate": 1e-3, "guard_scale": 1.0}
        write_jsonl(path, [*(r | steady for r in records[:-1]), records[-1] | steady | fields])
        known = sources.gather(asked(runs=(str(tmp_path / name),)), tmp_path)
        assert any("The learning rate of a run fell" in note for note in known.notes) is bool(
            fields
        )
