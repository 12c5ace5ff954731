"""Thresholds in a quantity of the tokens are judged on the runs and seeds on which laws are."""

import copy

import numpy as np
import pytest
import scipy.stats

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.law import settings, thresholds
from experiments.law.settings import Setting
from experiments.sweep import grid
from staleness_grpo.scaling.collapse_law import runs
from tests.helpers.collapses import law, record

RATE = 1.7e-3


@pytest.fixture(scope="module")
def records():
    """The first steps of these runs tell when they collapse, up to the step of an evaluation."""
    config = settings.configs(load_config(cli.ROOT / "experiments/configs/law.py"))[grid.MAIN]
    rng = np.random.default_rng(0)
    return [record(name, cell, law(0.9), rng) for name, cell in grid.cells(config).items()]


def judged(records):
    return thresholds.judge({"reference": Setting(records, 0.9, "adam")}, {"reference": RATE})


def exchanged(records):
    """Gives each run the first steps of another run with the same S and eta."""
    changed = copy.deepcopy(records)
    by_cell = {}
    for row in changed:
        by_cell.setdefault((row["max_lag"], row["learning_rate"]), []).append(row)
    for rows in by_cell.values():
        traces = [row["traces"] for row in rows]
        for row, other in zip(rows, traces[1:] + traces[:1], strict=True):
            row["traces"] = other
    return changed


def test_runs_whose_own_first_steps_tell_their_end_are_predicted_best_by_them(records):
    found = judged(records)["sum"]
    assert found["log_ratio_own"] > found["saturating"] + 10
    assert found["log_ratio_own"] > found["log_ratio_by_lag"] + 10


def test_first_steps_that_tell_only_s_and_eta_are_no_better_than_the_law(records):
    found = judged(exchanged(records))["sum"]
    assert found["saturating"] > found["log_ratio_own"] + 10


def test_a_law_of_s_and_eta_is_not_measured_in_runs_that_collapsed(records):
    changed = copy.deepcopy(records)
    for row in changed:
        if row["collapse_step"] is not None:
            # Another first block moves the run's own mean, and nothing that stable runs know.
            row["traces"]["clip_fraction"] = [0.9] * len(row["traces"]["clip_fraction"])
    before, after = judged(records)["sum"], judged(changed)["sum"]
    assert before["clip_fraction_by_lag"] == after["clip_fraction_by_lag"]
    assert before["clip_fraction_own"] != after["clip_fraction_own"]


def test_nothing_but_its_own_first_steps_is_known_of_a_run_that_is_judged(records):
    """What is measured in the judged half cannot change the predictions by S and eta."""
    stale = [row for row in records if row["max_lag"] and (row["collapse_step"] or 400) >= 15]
    known = runs(stale)
    fitted = thresholds.seed_halves(known.seed) == 0
    values = np.log([thresholds.early(row) for row in stale])
    moved = np.where(
        fitted[:, None], values, values + 3.0 * np.sin(np.arange(len(values)))[:, None]
    )
    before, after = (thresholds.held_out(known, each, fitted, RATE) for each in (values, moved))
    for name in thresholds.QUANTITIES:
        assert before[f"{name}_by_lag"] == after[f"{name}_by_lag"]
        assert before[f"{name}_own"] != after[f"{name}_own"]
    assert all(before[law] == after[law] for law in thresholds.LAWS)


def test_all_are_judged_on_the_same_runs(records):
    found = judged(records)
    kept = [row for row in records if row["max_lag"] and (row["collapse_step"] or 400) >= 15]
    assert found["num_runs"] == len(kept) and found["num_settings"] == 1
    names = {f"{name}_{form}" for name in thresholds.QUANTITIES for form in thresholds.FORMS}
    assert set(found["sum"]) == names | set(thresholds.LAWS)


def test_settings_without_traces_or_collapses_are_left_out(records):
    lacking = [dict(row, traces={"ess": row["traces"]["ess"]}) for row in records]
    stable = [row for row in records if row["collapse_step"] is None]
    for rows in (lacking, stable):
        found = judged(rows)
        assert found == {"by_setting": {}, "sum": {}, "num_settings": 0, "num_runs": 0}


def test_the_likelihood_of_a_run(records):
    few = runs(records)[::4]
    found = thresholds.log_likelihood(few, np.full(len(few), np.log(120.0)), 0.4)
    time = scipy.stats.norm(np.log(120.0), 0.4)
    for value, step, collapsed, every in zip(
        found, few.step, few.collapsed, few.resolution, strict=True
    ):
        earlier = time.cdf(np.log(step - every)) if step > every else time.cdf(np.log(0.5))
        expected = time.cdf(np.log(step)) - earlier if collapsed else time.sf(np.log(step))
        assert value == pytest.approx(np.log(expected), abs=1e-6)
    assert few.collapsed.any() and not few.collapsed.all()
