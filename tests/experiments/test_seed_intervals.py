"""Intervals of a sweep, of the corrections and of the contrast resample whole seeds.

With two seeds, a quarter of the resamples draws one seed twice, and a quarter the other one. If the
statistic of both together lies between theirs, the ends of an interval are the seeds' own values.
Resampled rows would give a narrower interval, because a seed has many rows here.
"""

import json

import numpy as np
import pytest

from experiments.configs import corrections
from experiments.corrections import analysis
from experiments.reproduce import contrast
from experiments.sweep import laws
from staleness_grpo.scaling import stability

SEEDS = (4, 9)
STEPS = 5  # learner steps of a block of the traces


def record(seed, learning_rate=1e-3, max_lag=16, collapse_step=None, **fields):
    given = dict(
        seed=seed,
        learning_rate=learning_rate,
        max_lag=max_lag,
        collapse_step=collapse_step,
        steps_run=1000,
        steps=1000,
        trace_every=STEPS,
    )
    return given | fields


def test_the_variation_of_collapse_times():
    """The seeds have the same mean, and coefficients of variation of 0.1 and 0.5."""
    steps = {4: (180, 220), 9: (100, 300)}
    records = [record(seed, collapse_step=s) for seed in SEEDS for s in steps[seed] * 30]
    found = laws.collapse_step_times_eta(records)
    np.testing.assert_allclose(found["cv_interval"], [0.1, 0.5], rtol=1e-12)
    assert (found["n"], found["num_seeds"]) == (120, 2)


def test_the_exponents_of_collapse_times(monkeypatch):
    """Each seed has its own exponents, and exact power laws that meet in the middle of the grid."""
    monkeypatch.setattr(laws, "RESAMPLES", 24)  # each is a search
    rates, lags = 1e-3 * 2.0 ** np.arange(-2, 3), (16, 32, 64)
    exponents = {4: (-1.0, 0.0), 9: (-0.4, 0.3)}
    records = [
        record(
            seed,
            float(rate),
            lag,
            collapse_step=200 * (rate / 1e-3) ** of_rate * (lag / 32) ** of_lag,
        )
        for seed, (of_rate, of_lag) in exponents.items()
        for rate in rates
        for lag in lags
    ] * 4
    found = laws.collapse_time(records)
    # The search ends within 1e-4 of the best parameters and of the best likelihood.
    assert found["eta_exponent_interval"] == pytest.approx([-1.0, -0.4], abs=1e-3)
    assert found["s_exponent_interval"] == pytest.approx([0.0, 0.3], abs=1e-3)


def test_the_constants_of_the_rule():
    """Each constant has one median in seed 4, and another one in seed 9."""
    spread = np.linspace(-1, 1, 41)
    records = [
        record(
            seed,
            learning_rate=1.0,
            collapse_step=STEPS,
            update_norm=median + shift,
            traces={
                "clip_fraction": [1.0],
                "drift_from_behavior": [10 * (median + shift)],
                "update_norm": [100 * (median + shift)],
            },
        )
        for seed, median in zip(SEEDS, (2.0, 2.6), strict=True)
        for shift in spread
    ]
    found = laws.constants(records)
    for name, unit in (("g_upd", 1), ("r_batch", 10), ("r_crit", 100 * STEPS)):
        np.testing.assert_allclose(
            found[f"{name}_interval"], [2.0 * unit, 2.6 * unit], rtol=1e-12, err_msg=name
        )


def boundary_cells(slope_of_seed, rates):
    """Returns cells whose boundary is a power law of S, with a slope for each seed."""
    rows = [
        (lag, rate, 300.0, rate > 1e-3 * (lag / 4) ** slope, seed)
        for seed, slope in slope_of_seed.items()
        for lag in (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
        for rate in rates
    ]
    return stability.Cells(*(np.array(column) for column in zip(*rows, strict=True)))


def test_the_slope_of_the_boundary(monkeypatch):
    monkeypatch.setattr(laws, "RESAMPLES", 24)  # each is a search
    cells = boundary_cells({4: 0.0, 9: -1.0}, np.geomspace(2e-4, 5e-3, 60))
    found = laws.slopes(cells)["falling"]
    # A boundary is known up to a step of the grid, and shifted by half a step at most. Log S spans
    # log 16, so that a slope is off by a step over log 16.
    assert found["interval"] == pytest.approx([-1.0, 0.0], abs=np.log(25) / 59 / np.log(16))
    assert found["num_seeds"] == 2


@pytest.mark.slow
def test_the_slope_of_a_boundary_is_no_better_known_than_the_grid_resolves(monkeypatch):
    """All seeds agree, so only the shifts of the learning rates give the interval a width."""
    monkeypatch.setattr(laws, "RESAMPLES", 120)
    cells = boundary_cells(dict.fromkeys(SEEDS, 0.0), np.geomspace(5e-4, 2e-3, 20))
    low, high = laws.slopes(cells)["falling"]["interval"]
    # Each of 2 x 5 boundaries has a uniform shift. A slope of least squares has this standard
    # error.
    step, log_lag = np.log(4) / 19, np.log([1, 2, 4, 8, 16])
    error = step / np.sqrt(12) / np.sqrt(2 * np.sum((log_lag - log_lag.mean()) ** 2))
    # With 120 resamples the width has a standard error of a tenth. A shift of each row, or of none,
    # would give less than half of it.
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.3)


def training_config(seeds=SEEDS):
    config = corrections.get_config()
    config.stability.sweep.seeds, config.stability.sweep.max_lags = seeds, (8, 32)
    return config


def trained_records(boundary):
    """Returns records of corrections. `boundary` is the collapse threshold, by method and seed."""
    return [
        record(seed, float(rate), lag, collapse_step=100 if rate > edge else None)
        | {"method": method, "final": (0.25 if seed == 4 else 0.75) + 0.125 * (lag == 32)}
        for method, of_seed in boundary.items()
        for seed, edge in of_seed.items()
        for lag in (8, 32)
        for rate in 2.0 ** np.arange(-16, -4)
    ]


EDGE = 1.5 * 2.0**-14  # between two learning rates of the grid


def ratio_interval(baseline, other):
    """Returns the interval of the ratio of stable learning rates, the same at both lags."""
    of_method = {
        name: dict(zip(SEEDS, edges, strict=True))
        for name, edges in (("grpo_clip", baseline), ("none", other))
    }
    row = analysis.training_rows(training_config(), trained_records(of_method))["none"]
    first, second = (row["eta_max_over_baseline"][lag] for lag in ("8", "32"))
    assert first == second and first["n"] == 2
    return first["interval"]


def test_the_ratio_of_stable_learning_rates():
    # An estimate is in the middle of two rates, which is where the edges are. The search ends
    # within 1e-4.
    interval = ratio_interval((EDGE, EDGE), (2 * EDGE, 128 * EDGE))
    assert interval == pytest.approx([2, 128], rel=1e-3)


def test_both_stable_learning_rates_of_a_ratio_are_of_the_same_seeds():
    """The seeds differ by a factor of 8, and the ratio is 2 with either and with both."""
    interval = ratio_interval((2 * EDGE, 16 * EDGE), (4 * EDGE, 32 * EDGE))
    assert interval == pytest.approx([2, 2], rel=1e-3)


def test_a_seed_that_is_drawn_three_times_counts_three_times():
    """Between the two seeds' edges, the seed that is drawn more often decides."""
    records = trained_records({"none": {4: EDGE, 9: 64 * EDGE}})
    cells = analysis.cells_at_lag(records, 8, 1000)
    rates = np.unique(cells.learning_rate)
    both = analysis.resampled_log_eta_max(cells, rates, [(4, 4, 4, 9), (4, 9), (4, 9, 9, 9)])
    # A step of the grid is log 2.
    assert np.all(np.diff(both) > np.log(2))


def test_a_mean_reward_has_one_value_for_each_seed():
    edge = 1.5 * 2.0**-12
    records = trained_records({"grpo_clip": dict.fromkeys(SEEDS, edge)})
    rows = analysis.training_rows(training_config(), records)["grpo_clip"]
    for name in ("final_reward", "best_reward"):
        for lag, added in (("8", 0.0), ("32", 0.125)):
            assert rows[name][lag]["n"] == 2
            np.testing.assert_allclose(rows[name][lag]["interval"], [0.25 + added, 0.75 + added])


def test_values_of_the_same_draw_are_one_value():
    """Each draw is one problem, with a record for each path and S * eta."""
    values = {0: 0.25, 1: 0.75}
    records = [
        {"draw": draw, "path": path, "s_eta": s_eta, "offset": value}
        | {name: value + (path == "own") + 2 * s_eta for name in ("relative_bias", "cosine")}
        for draw, value in values.items()
        for path in ("synchronous", "own")
        for s_eta in (0.5, 1.0)
    ]
    row = analysis.bias_row(records)
    assert row["offset"]["n"] == 2
    np.testing.assert_allclose(row["offset"]["interval"], [0.25, 0.75], rtol=1e-12)
    for name in ("relative_bias", "cosine"):
        for path, added in (("synchronous", 0), ("own", 1)):
            for s_eta in (0.5, 1.0):
                found = row[name][path][f"{s_eta:g}"]
                ends = np.array([0.25, 0.75]) + added + 2 * s_eta
                np.testing.assert_allclose(found["interval"], ends, rtol=1e-12)
                assert found["n"] == 2


def test_ratios_to_the_baseline_are_of_the_same_draw_and_round():
    """Draws and rounds differ by a factor of 100. Within one, the ratio is 2 or 3."""
    baseline, other = (1.0, 100.0), (2.0, 300.0)
    variances = [
        {"correction": name, "draw": draw, "relative_variance": value}
        for name, values in (("grpo_clip", baseline), ("none", other))
        for draw, value in enumerate(values)
    ]
    times = [
        {"method": name, "round": round_, "time_update": value}
        for name, values in (("grpo_clip", baseline), ("none", other))
        # In another order, as the records have them.
        for round_, value in sorted(enumerate(values), reverse=name == "none")
    ]
    variance = analysis.variance_row(variances, "none")["variance_ratio"]
    time = analysis.cost_row(times, "none")["update_time_ratio"]
    for found in (variance, time):
        np.testing.assert_allclose(found["interval"], [2, 3], rtol=1e-12)
        assert found["n"] == 2


def test_the_cost_of_lag_is_a_difference_of_the_same_seed(tmp_path):
    """Seeds differ by 0.5, and in each seed lag costs 0.125 or 0.25."""
    finals = {(0, 4): 0.25, (16, 4): 0.125, (0, 9): 0.75, (16, 9): 0.5}
    records = [
        record(seed, max_lag=lag, first=0.0625 if seed == 4 else 0.5, final=final)
        for (lag, seed), final in finals.items()
    ]
    path = tmp_path / "cells.jsonl"
    mixed = [records[row] for row in (3, 0, 1, 2)]  # shares of a map end in any order
    path.write_text("".join(json.dumps(line) + "\n" for line in mixed))
    pair = contrast.pair_of_lags(path, 16, 1e-3)
    found = {claim.name: claim for claim in contrast.claims(pair, 1e-3, "command")}
    np.testing.assert_allclose(found["lag_costs_reward"].interval, [0.125, 0.25], rtol=1e-12)
    risen = found["reward_rises_without_lag"]
    np.testing.assert_allclose(risen.interval, [0.1875, 0.25], rtol=1e-12)
    assert risen.n == found["lag_costs_reward"].n == 2
