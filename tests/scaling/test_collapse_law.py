"""Tests the law of collapse times, its likelihood, its boundary, and the fits of its constants."""

import numpy as np
import pytest

from staleness_grpo.scaling import collapse_law
from staleness_grpo.scaling.collapse_law import LAWS, NAMES, Runs, eta_max, log_survival
from staleness_grpo.scaling.prior import best_fit, fit, population, vague

# log t_ref, b, log S0 (or a, or log A), log of the cap, log sigma
CONSTANTS = {
    "saturating": np.array([np.log(300), 1.7, np.log(8), 2.0, np.log(0.25)]),
    "power": np.array([np.log(900), 1.4, 0.4, 2.0, np.log(0.25)]),
    "horizon": np.array([np.log(300), 1.0, 0.0, 2.0, np.log(0.25)]),
    "paper": np.array([np.log(300), 1.0, np.log(16.0), 2.0, np.log(1e-3)]),
}


def simulated(constants, seed=0, steps=600, every=5, num_seeds=6, lags=(0, 1, 4, 16, 64)):
    """Draws the collapse of each run from the saturating law, one by one."""
    rng = np.random.default_rng(seed)
    log_time, b, log_s0, log_cap, log_sigma = constants
    rows = []
    for number in range(num_seeds):
        for lag in lags:
            for log_rate in np.linspace(-1.1, 1.3, 8):
                time = np.inf
                if lag:
                    median = np.exp(log_time - b * log_rate) * (1 + np.exp(log_s0) / lag)
                    time = median * np.exp((0.05 + np.exp(log_sigma)) * rng.normal())
                if log_rate > log_cap + collapse_law.CAP_WIDTH * rng.normal():
                    time = min(time, 15 * np.exp(0.5 * rng.normal()))
                found = every * np.ceil(time / every) if time < steps else steps
                rows.append((lag, np.exp(log_rate), found, time < steps, every, number))
    lag, rate, step, collapsed, resolution, number = (np.array(c) for c in zip(*rows, strict=True))
    return Runs(lag.astype(float), rate, step, collapsed, resolution, number)


@pytest.mark.parametrize("law", LAWS)
def test_the_likelihoods_of_everything_that_can_happen_add_up_to_one(law):
    """A run collapses in one of the stretches between evaluations, or survives."""
    ends = np.arange(5, 605, 5.0)
    count = len(ends) + 1
    for lag in (0.0, 1.0, 40.0):
        for rate in (0.3, 1.0, 9.0):
            runs = Runs(
                max_lag=np.full(count, lag),
                learning_rate=np.full(count, rate),
                step=np.append(ends, 600.0),
                collapsed=np.arange(count) < count - 1,
                resolution=np.full(count, 5),
                seed=np.zeros(count),
            )
            each = collapse_law.log_likelihood(law, CONSTANTS[law], runs, 1.0)
            # A stretch that is nearly impossible is given 1e-10.
            assert np.exp(each).sum() == pytest.approx(1, abs=1e-6)


def test_the_survival_is_the_share_of_simulated_runs_that_survive():
    constants = CONSTANTS["saturating"]
    runs = simulated(constants, num_seeds=4000, lags=(0, 4))
    for lag in (0.0, 4.0):
        for rate in np.unique(runs.learning_rate):
            chosen = runs[(runs.max_lag == lag) & (runs.learning_rate == rate)]
            for step in (20.0, 100.0, 600.0):
                share = np.mean(~chosen.cut(step).collapsed)
                expected = np.exp(
                    log_survival("saturating", constants, lag, np.log(rate), np.log(step))
                )
                assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("risk", [0.05, 0.5])
def test_at_eta_max_the_risk_is_the_given_one(law, risk):
    lags = np.array([0.0, 1.0, 3.0, 64.0])
    rates = eta_max(law, CONSTANTS[law], lags, 450.0, rate=2e-3, risk=risk)
    survives = log_survival(law, CONSTANTS[law], lags, np.log(rates / 2e-3), np.log(450.0))
    np.testing.assert_allclose(1 - np.exp(survives), risk, atol=1e-6)


def test_eta_max_of_the_saturating_law_has_its_closed_form_where_the_cap_is_far():
    log_time, b, log_s0, _, log_sigma = CONSTANTS["saturating"]
    far = np.array([log_time, b, log_s0, 25.0, log_sigma])
    lags = np.array([1.0, 8.0, 64.0])
    expected = (np.exp(log_time) * (1 + np.exp(log_s0) / lags) / 600) ** (1 / b)
    np.testing.assert_allclose(eta_max("saturating", far, lags, 600.0, 1.0), expected, rtol=1e-6)


def test_the_rule_of_the_paper_is_the_smaller_of_its_two_bounds():
    """With a sharp boundary: min(A / S, B / T), arXiv 2607.01083."""
    log_time, _, log_a, _, _ = CONSTANTS["paper"]
    constants = np.array([log_time, 1.0, log_a, 25.0, np.log(1e-6)])
    lags = np.array([1.0, 4.0, 64.0])
    for horizon in (200.0, 5000.0):
        bound = np.minimum(np.exp(log_a) / lags, np.exp(log_time) / horizon)
        found = eta_max("paper", constants, lags, horizon, 1.0)
        np.testing.assert_allclose(found, bound, rtol=2e-2)


def test_without_lag_only_the_cap_collapses_runs():
    constants = CONSTANTS["saturating"]
    log_rate = np.array([0.0, 1.0, 4.0])
    survives = np.exp(log_survival("saturating", constants, 0.0, log_rate, np.log(1e6)))
    np.testing.assert_allclose(survives, [1, 1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("num_maps", "share"), [(6, 0.7), pytest.param(60, 0.88, marks=pytest.mark.slow)]
)
def test_the_fit_finds_the_constants_of_simulated_runs(num_maps, share):
    """The truth is in the central 95 % of nearly all intervals."""
    truth = CONSTANTS["saturating"].copy()
    truth[3] = 1.0  # a cap within the grid
    inside = []
    for seed in range(num_maps):
        fitted = fit(simulated(truth, seed, num_seeds=3), 1.0, vague())
        low, high = np.percentile(fitted.constants, [2.5, 97.5], axis=0)
        inside.append((low <= truth) & (truth <= high))
        assert fitted.effective > 200
    # sigma has a floor, and few seeds find the width of the cap: the other four are judged.
    assert np.mean(np.array(inside)[:, :4]) > share


def test_each_law_fits_the_runs_that_it_made_best():
    truth = CONSTANTS["saturating"]
    runs, fresh = simulated(truth, 1), simulated(truth, 2)
    scores = {}
    for law in LAWS:
        constants = best_fit(runs, 1.0, vague(law), law)
        scores[law] = collapse_law.log_likelihood(law, constants, fresh, 1.0).sum()
    assert max(scores, key=lambda law: scores[law]) == "saturating"


def test_a_run_that_is_cut_before_its_collapse_has_not_collapsed():
    runs = simulated(CONSTANTS["saturating"])
    cut = runs.cut(150)
    assert (cut.step <= 150).all()
    np.testing.assert_array_equal(cut.collapsed, runs.collapsed & (runs.step <= 150))


def record(**fields):
    """Makes the line of a cell that ran to its end."""
    whole = dict(
        max_lag=4,
        learning_rate=1e-3,
        collapse_step=None,
        steps_run=600,
        steps=600,
        finite=True,
        trace_every=5,
        seed=0,
    )
    return whole | fields


def test_records_become_runs():
    records = [
        record(),
        record(collapse_step=70, steps_run=130),
        record(collapse_step=0, steps_run=60),
        record(finite=False, steps_run=20),
    ]
    runs = collapse_law.runs(records)
    np.testing.assert_array_equal(runs.collapsed, [False, True, True, True])
    np.testing.assert_array_equal(runs.step, [600, 70, 5, 20])


def test_the_prior_of_a_setting_is_the_mean_of_the_others_at_its_momentum():
    momenta = (0.0, 0.9, 0.99)
    fits = []
    for i, b1 in enumerate(momenta):
        truth = CONSTANTS["saturating"].copy()
        truth[2] = np.log(1.5 / (1 - b1))
        fits.append((fit(simulated(truth, i), 1.0, vague()), b1))
    prior = population(fits).at_momentum(0.95)
    of_lag = NAMES.index("of_lag")
    assert prior.mean[of_lag] == pytest.approx(np.log(1.5 / 0.05), abs=0.5)
    assert 0.05 < prior.spread[of_lag] < 1.0
    assert prior.mean[1] == pytest.approx(1.7, abs=0.15)
