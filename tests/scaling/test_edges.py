"""The usable learning rates of synthetic maps whose edges are known."""

import math

import numpy as np
import pytest

from staleness_grpo.scaling import edges
from staleness_grpo.scaling.outcomes import HELD_OUT

RATES = [2.0**-k for k in range(8, 0, -1)]  # 1/256 to 1/2
LAGS = (0, 1, 2, 4, 8, 16)
EVALUATIONS = 40


def trace(outcome, rng):
    """Returns rewards that end as the outcome says, with a little noise."""
    up = np.concatenate([np.linspace(0.2, 0.9, 15), np.full(EVALUATIONS - 15, 0.9)])
    rewards = {
        "learned": up,
        "stalled": np.full(EVALUATIONS, 0.2),
        "collapsed": np.where(np.arange(EVALUATIONS) < 20, up, 0.02),
    }[outcome]
    return list(np.clip(rewards + 0.004 * rng.normal(size=EVALUATIONS), 0, 1))


def record(lag, rate, seed, outcome, rng):
    rewards = trace(outcome, rng)
    return dict(
        max_lag=lag,
        learning_rate=rate,
        seed=seed,
        finite=True,
        lowest_reward=0.0,
        collapse_step=100 if outcome == "collapsed" else None,
        traces={"eval_reward": rewards},
    )


def synthetic_map(lags=LAGS, rates=RATES, seeds=range(4), low=1 / 90, high_at_1=0.36):
    """Learns between `low` and high_at_1 / max(S, 1)^0.5, where edges of seeds differ a little."""
    rng = np.random.default_rng(0)
    records = []
    for lag in lags:
        for seed in seeds:
            high = high_at_1 / max(lag, 1) ** 0.5 * math.exp(0.1 * rng.normal())
            for rate in rates:
                outcome = "learned" if low < rate < high else "stalled"
                records.append(
                    record(lag, rate, seed, "collapsed" if rate >= high else outcome, rng)
                )
    return records


def test_edges_are_where_half_of_the_seeds_learn():
    found = edges.edges({1e-3: 0.0, 1e-2: 1.0, 1e-1: 0.75, 1.0: 0.25})
    assert found.low == pytest.approx(10**-2.5)  # the share rises from 0 to 1
    assert found.high == pytest.approx(10**-0.5)  # and falls from 3/4 to 1/4
    assert edges.edges({1e-3: 1.0, 1e-2: 1.0}) == edges.Edges(0.0, math.inf)
    nothing = edges.edges({1e-3: 0.25, 1e-2: 0.0})
    assert math.isnan(nothing.low) and math.isnan(nothing.high)


def test_exactly_half_of_the_seeds_are_enough():
    found = edges.edges({1e-3: 0.0, 1e-2: 0.5, 1e-1: 0.5, 1.0: 0.0})
    assert (found.low, found.high) == (pytest.approx(1e-2), pytest.approx(1e-1))
    assert edges.edges({1e-3: 0.5}) == edges.Edges(0.0, math.inf)


def test_a_gap_above_the_best_rate_ends_the_usable_rates():
    """A rate beyond the gap, where learning is luck, does not widen them."""
    found = edges.edges({1e-3: 1.0, 1e-2: 0.0, 1e-1: 0.75})
    assert found.high == pytest.approx(10**-2.5)


def test_a_map_gives_back_the_edges_and_the_slope_that_made_it():
    found = edges.summarize(synthetic_map(), 200)
    step = math.log(2)
    for lag in LAGS:
        entry = found["by_lag"][str(lag)]
        assert abs(math.log(entry["low"] * 90)) < step
        assert abs(math.log(entry["high"] / 0.36 * max(lag, 1) ** 0.5)) < step
        assert entry["high_interval"][0] < entry["high"] < entry["high_interval"][1]
        assert set(entry["learned"]) == {f"{rate:g}" for rate in RATES}
    low, high = found["slope_interval"]
    assert low < -0.5 < high and high - low < 0.5
    assert found["slope"] == pytest.approx(-0.5, abs=0.15)
    assert found["num_seeds"] == 4


def test_edges_outside_the_grid_are_named_and_have_no_number():
    inside = [rate for rate in RATES if 1 / 90 < rate < 0.05]
    found = edges.summarize(synthetic_map(lags=(0, 1, 4), rates=inside), 50)
    for entry in found["by_lag"].values():
        assert (entry["low"], entry["high"]) == (None, None)
        assert (entry["low_is"], entry["high_is"]) == (edges.BELOW, edges.ABOVE)
    assert found["slope"] is None and found["slope_interval"] is None


def test_a_lag_at_which_nothing_learns_has_no_usable_rate():
    records = synthetic_map(lags=(0, 1, 2, 4))
    rng = np.random.default_rng(1)
    records += [record(32, rate, seed, "collapsed", rng) for rate in RATES for seed in range(4)]
    entry = edges.summarize(records, 50)["by_lag"]["32"]
    assert (entry["low_is"], entry["high_is"]) == (edges.NONE, edges.NONE)
    assert set(entry["learned"].values()) == {0.0}


def test_held_out_rewards_decide_where_there_are_some():
    records = synthetic_map(lags=(1,))
    for r in records:
        r["traces"][HELD_OUT] = [0.2] * EVALUATIONS
        r["collapse_step"] = None
    assert not edges.learned_cells(records).learned.any()
