"""Held-out numbers are judged on seeds that had no part in the fit or the threshold.

The halves here contradict each other. What is fitted to a half is perfect on that half, and no
better than chance on the other one. So a leak changes every number by much.
"""

import itertools

import numpy as np
import pytest

from staleness_grpo.scaling import alarms, stability

RATES = 2.0 ** np.arange(-12, -2)  # ten learning rates
LAGS = (1, 2, 4)


def contradicting_cells():
    """Returns cells of two seeds. Seed 0 collapses from the second rate on, seed 1 at the last.

    No cell with S = 0 collapses, except at the last rate.
    """
    rows = []
    for seed, lag, (place, rate) in itertools.product((0, 1), (0, *LAGS), enumerate(RATES)):
        first_to_collapse = 1 if seed == 0 and lag else 9
        rows.append((lag, rate, 100, place >= first_to_collapse, seed))
    lags, rates, horizons, collapsed, seeds = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return stability.Cells(lags.astype(float), rates, horizons.astype(float), collapsed, seeds)


def test_a_rule_is_judged_on_seeds_that_it_was_not_fitted_to():
    cells = contradicting_cells()
    for seed in (0, 1):
        own = cells[(cells.seed == seed) & (cells.max_lag >= 1)]
        fit = stability.fit_rule("horizon", own)
        assert stability.balanced_accuracy("horizon", fit, own) == 1
        assert stability.log_likelihood("horizon", fit, own) > -0.1
    held_out = stability.cross_validate("horizon", cells, cells.seed)
    # Of each seed's nine rates with one outcome, the other seed's boundary has one right. Of the
    # tenth rate it is right.
    assert held_out.balanced_accuracy_stale == pytest.approx((1 / 9 + 1) / 2, rel=1e-12)
    # At S = 0 both seeds have nine stable rates. The boundary of seed 0 has one of them right, that
    # of seed 1 all.
    collapsing_right = (3 * 1 + 1) / (3 * 9 + 1)  # of seed 0, by the boundary of seed 1
    stable_right = (3 * 1 + 1) / (3 * 9 + 9)  # of seed 1, by the boundary of seed 0
    expected = ((collapsing_right + 1) / 2 + (stable_right + 1) / 2) / 2
    assert held_out.balanced_accuracy == pytest.approx(expected, rel=1e-12)
    # Eight rates of 3 lags and 2 seeds lie between the boundaries. They are 0.5 to 7.5 steps of
    # log 2 from the wrong one, and sigma is at most 0.1. A normal tail is below exp(-z^2 / 2).
    z = np.log(2) * (np.arange(8) + 0.5) / 0.1
    assert held_out.log_likelihood < -2 * 3 * np.sum(z**2) / 2


def run(seed, level, collapse_step=None, rise=0.0, max_lag=8):
    """Returns a run whose trace is at `level`, and `rise` higher in the last two of ten blocks."""
    trace = np.full(10, level) + rise * (np.arange(10) >= 8)
    return dict(
        max_lag=max_lag,
        seed=seed,
        collapse_step=collapse_step,
        steps_run=50,
        trace_every=5,
        traces={"entropy": trace.tolist()},
    )


def contradicting_runs():
    """Returns runs of four seeds. Seeds 0 and 1 have traces around 0, seeds 2 and 3 around 10.

    In each pair of seeds, every collapse is preceded by a rise that no stable run has.
    """
    runs = []
    for seed in range(4):
        level = 10.0 * (seed >= 2)
        for place in range(10):
            runs.append(run(seed, level + 0.01 * place))
            runs.append(run(seed, level + 0.01 * place, collapse_step=50, rise=1.0))
    return runs


def test_within_either_half_a_threshold_finds_every_collapse():
    """Checks that the alarms are good where there is nothing to contradict."""
    for seeds in ((0, 1), (2, 3)):
        result = alarms.alarm([r for r in contradicting_runs() if r["seed"] in seeds], "entropy")
        assert result["found"] == 1 and result["median_lead"] == 5  # known at the end of the block
        assert result["false_alarms"] == pytest.approx(alarms.ALLOWED_FALSE_ALARM_SHARE)


@pytest.mark.parametrize("order", ["by seed", "mixed"])
def test_an_alarm_is_judged_on_seeds_that_its_threshold_was_not_chosen_on(order):
    runs = contradicting_runs()
    if order == "mixed":
        runs = [runs[row] for row in np.random.default_rng(0).permutation(len(runs))]
    result = alarms.alarm(runs, "entropy")
    # The threshold of seeds 2 and 3 is above all values of seeds 0 and 1: no alarm. That of seeds 0
    # and 1 is below all values of seeds 2 and 3: the alarm goes off in every run, at once.
    assert result == {"found": 0.5, "false_alarms": 0.5, "median_lead": 45, "n": 40}


def test_the_halves_of_an_alarm_hold_whole_seeds_at_any_number_of_runs():
    """Checks seeds with more runs than others: halves of equally many runs would cut a seed."""
    runs = contradicting_runs()
    runs += [run(0, 0.01 * place) for place in range(60)]
    runs += [one | {"max_lag": 16} for one in contradicting_runs()]
    result = alarms.alarm(runs, "entropy")
    assert result["found"] == 0.5 and result["false_alarms"] == 0.5 and result["n"] == 80
