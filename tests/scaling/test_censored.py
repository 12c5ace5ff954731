"""Censored fits recover the law that made the data."""

import numpy as np
import pytest

from staleness_grpo.scaling.censored import fit_censored_power_law, fit_threshold


def test_a_power_law_is_recovered_where_dropping_the_censored_runs_would_bend_it():
    rng = np.random.default_rng(0)
    x = np.repeat(np.geomspace(5e-4, 4e-3, 8), 50)
    y = 0.2 * x**-1.0 * np.exp(0.4 * rng.normal(size=x.size))
    censored = y > 150
    observed = np.where(censored, 150, y)
    assert 0.2 < censored.mean() < 0.8
    fit = fit_censored_power_law(x, observed, censored)
    # The standard error of the slope is about 0.4 / (sqrt(200) * std(log x)) = 0.04.
    assert fit.parameters[1] == pytest.approx(-1.0, abs=0.12)
    assert fit.sigma == pytest.approx(0.4, abs=0.05)
    dropped = np.polyfit(np.log(x[~censored]), np.log(y[~censored]), 1)[0]
    assert abs(dropped + 1) > 2 * abs(fit.parameters[1] + 1)


def test_a_covariate_has_its_own_exponent():
    rng = np.random.default_rng(1)
    x, covariate = np.exp(rng.uniform(-3, 0, (2, 400)))
    y = x**-1.5 * covariate**0.5 * np.exp(0.1 * rng.normal(size=400))
    fit = fit_censored_power_law(x, y, np.zeros(400, bool), np.log(covariate)[:, None])
    np.testing.assert_allclose(fit.parameters, [0, -1.5, 0.5], atol=0.05)


def test_the_likelihood_of_a_censored_run_is_the_chance_of_a_later_collapse():
    # A point at log y = 0 and one censored at 0 pull in opposite ways. The mean must lie above 0.
    y = np.ones(40)
    censored = np.arange(40) % 2 == 0
    fit = fit_censored_power_law(np.exp(np.linspace(-1, 1, 40)), y, censored)
    assert fit.parameters[0] > 0
    assert fit.parameters[1] == pytest.approx(0, abs=0.1)


def test_a_threshold_is_recovered_from_yes_and_no():
    rng = np.random.default_rng(2)
    log_x = np.tile(np.linspace(-2, 2, 9), 600)
    event = log_x + 0.5 * rng.normal(size=log_x.size) > 0.7
    fit = fit_threshold(log_x, event, lambda p: np.full(log_x.size, p[0]), np.array([[0.0]]))
    assert fit.parameters[0] == pytest.approx(0.7, abs=0.04)
    # The standard errors are about 0.012.
    assert fit.sigma == pytest.approx(0.5, abs=0.04)
