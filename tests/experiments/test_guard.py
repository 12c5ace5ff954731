"""The comparison of trainings with and without a guard, on records that are made by hand."""

import functools

import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.claims import read as read_claims
from experiments.common.flag_parsing import load_config
from experiments.guard import __main__ as guard
from experiments.guard import analysis
from experiments.sweep import grid
from staleness_grpo.errors import FieldError
from staleness_grpo.runtime.records import read_json, write_jsonl

CONFIG = cli.ROOT / "experiments" / "configs" / "guard.py"
LEVEL = 0.1


def small():
    config = load_config(CONFIG)
    config.sweep.update(dict(max_lags=(0, 8), learning_rates=(1e-3, 4e-3), seeds=(0, 1, 2, 3, 4)))
    config.variants.warn.guard.level = LEVEL
    config.variants.scale.guard.level = LEVEL
    return config


def cell(name, config, kind):
    """Makes a cell: at S = 8 and 4e-3 it collapses at step 100 unless a guard scales the rate."""
    is_beyond = config.lag.max_lag == 8 and config.optimizer.learning_rate == 4e-3
    saved = kind == "scale" and config.seed < 4  # the guard saves four of five seeds
    collapses = is_beyond and not saved
    is_false = not is_beyond and config.lag.max_lag == 8 and config.seed == 0
    final = {True: 0.0, False: 0.8 if kind == "scale" else 0.9}[collapses]
    record = {
        "cell": name,
        "max_lag": config.lag.max_lag,
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "collapse_step": 100 if collapses else None,
        "finite": True,
        "final": final,
        "trace_every": 5,
        "traces": {"eval_reward": [0.3, final]},
    }
    if kind != grid.MAIN:
        # Blocks of five steps. The first alarm is in the block that ends at step 50.
        has_alarm = kind == "scale" and (is_beyond or is_false)
        record["traces"]["guard_scale"] = [1.0] * 9 + [0.9 if has_alarm else 1.0, 0.25]
        if not has_alarm:
            record["traces"]["guard_scale"][-1] = 1.0
    return record


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Runs the experiment on a workdir that has all records already, so that nothing is trained."""
    folder = tmp_path_factory.mktemp("guard") / "run"
    folder.mkdir()
    config = small()
    guard.validate(config)
    for name, variant in grid.variant_configs(config).items():
        cells = grid.cells(variant).items()
        write_jsonl(folder / grid.cells_file(name), (cell(key, c, name) for key, c in cells))
    cli.complete(guard.main, guard.draw, config, folder)
    return folder


def test_the_summary_counts_what_was_prevented_and_what_it_cost(workdir):
    summary = read_json(workdir / "summary.json")
    assert summary["beyond"] == {
        "settings": 1,
        "collapsed": 5,
        "collapsed_with_guard": 1,
        "least_prevented_share": pytest.approx(0.8),
        "final": 0.0,
        "final_with_guard": pytest.approx(4 * 0.8 / 5),
    }
    assert summary["inside"]["settings"] == 3
    assert summary["inside"]["largest_cost"] == pytest.approx(1 / 9)
    claims = {claim.name: claim.holds for claim in read_claims(summary)}
    assert claims["guard_prevents"] and not claims["guard_is_cheap"]
    assert claims["warnings_change_nothing"]


def test_warnings_are_counted_before_the_collapse_and_among_stable_runs(workdir):
    """S = 0 is left out. At S = 8 five runs collapse and five are stable, one with an alarm."""
    found = read_json(workdir / "summary.json")["warnings"]
    assert found == {
        "found": 1.0,
        "median_lead": 50.0,
        "false_alarms": pytest.approx(0.2),
        "collapsed": 5,
        "stable": 5,
    }


@pytest.mark.parametrize(
    ("lowest", "final", "guarded", "cost"),
    [
        (0.0, 0.8, 0.6, 0.25),
        (-1.0, -0.5, -0.75, 0.5),  # half of the height above the lowest reward
        (0.0, 0.0, 0.0, None),  # nothing was learned, so nothing can be lost
        (0.0, 0.8, -0.2, 1.0),
    ],
)
def test_the_cost_is_a_share_of_the_height_above_the_lowest_reward(lowest, final, guarded, cost):
    setting = dict(lowest_reward=lowest, final=final, final_with_guard=guarded)
    assert analysis.cost(setting) == (None if cost is None else pytest.approx(cost))


def test_the_last_scale_is_that_of_the_last_block_with_one():
    assert analysis._last([1.0, 0.5, None]) == 0.5


def test_an_alarm_after_the_collapse_foretells_nothing():
    run = {"cell": "x", "max_lag": 4, "collapse_step": 20}
    late = {"cell": "x", "trace_every": 5, "traces": {"guard_scale": [1.0] * 6 + [0.5]}}
    assert analysis.first_alarm(late) == 35
    assert analysis.warnings([run], [late])["found"] == 0.0
    early = late | {"traces": {"guard_scale": [1.0, 0.9, 0.5]}}
    found = analysis.warnings([run], [early])
    assert found["found"] == 1.0 and found["median_lead"] == 10.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"guard.mode": "scale"}, "guard.mode"),
        ({"variants.warn.guard.mode": "scale"}, "variants.warn.guard.mode"),
        ({"variants.scale.guard.level": 0.5}, "variants.warn.guard.level"),
        ({"variants.scale.sweep": ConfigDict(dict(seeds=(7,)))}, "variants.scale"),
    ],
)
def test_a_study_that_would_compare_something_else_is_refused(fields, named):
    config = small()
    with config.unlocked():
        for name, value in fields.items():
            *sections, last = name.split(".")
            section = functools.reduce(lambda part, key: part[key], sections, config)
            section[last] = value
    with pytest.raises(FieldError) as error:
        guard.validate(config)
    assert error.value.field == named


def test_other_variants_are_refused():
    config = small()
    with config.unlocked():
        del config.variants["warn"]
    with pytest.raises(FieldError, match="warn"):
        guard.validate(config)
