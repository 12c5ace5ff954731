"""The stability rules recover the boundary that made the cells, and are judged on other seeds."""

import dataclasses
import itertools

import numpy as np
import pytest

from staleness_grpo.scaling import stability

LAGS = (1, 2, 4, 8, 16, 32, 64)
RATES = np.geomspace(5e-4, 8e-3, 9)
HORIZONS = (100, 300)


def synthetic(rule, seeds, noise=0.05):
    """Returns cells whose boundary is `rule` of 0.0145 / S and 0.27 / T, with noise in its log."""
    rng = np.random.default_rng(min(seeds))
    rows = []
    for lag, rate, horizon, seed in itertools.product(LAGS, RATES, HORIZONS, seeds):
        boundary = rule(0.0145 / lag, 0.27 / horizon) * np.exp(noise * rng.normal())
        rows.append((lag, rate, horizon, rate > boundary, seed))
    lags, rates, horizons, collapsed, seeds = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return stability.Cells(lags.astype(float), rates, horizons.astype(float), collapsed, seeds)


@pytest.mark.parametrize(("name", "rule"), [("min", min), ("max", max)])
def test_the_rule_that_made_the_cells_is_recovered_and_wins_on_held_out_seeds(name, rule):
    cells, others = synthetic(rule, range(4)), synthetic(rule, range(10, 14))
    fit = stability.fit_rule(name, cells)
    np.testing.assert_allclose(np.exp(fit.parameters), [0.0145, 0.27], rtol=0.15)
    assert stability.balanced_accuracy(name, fit, others) > 0.95
    scores = {
        candidate: stability.cross_validate(candidate, cells, cells.seed % 2).log_likelihood
        for candidate in ("min", "max", "product", "staleness", "horizon")
    }
    assert max(scores, key=lambda candidate: scores[candidate]) == name
    assert scores[name] > max(value for key, value in scores.items() if key != name) + 20


def test_the_smooth_rule_contains_both():
    for rule, sign in ((min, -1), (max, 1)):
        fit = stability.fit_rule("smooth", synthetic(rule, range(3)))
        assert sign * fit.parameters[2] > 3


def saturating(first, s0, b, scale=1.0, noise=0.05):
    """Returns cells that collapse at first (eta / scale)^-b (1 + s0 / S), with noise in its log."""
    rng = np.random.default_rng(0)
    rows = []
    for lag, rate, seed in itertools.product(LAGS, RATES, range(4)):
        time = first * rate**-b * (1 + s0 / lag) * np.exp(noise * rng.normal())
        rows += [(lag, scale * rate, horizon, time < horizon, seed) for horizon in HORIZONS]
    lags, rates, horizons, collapsed, seeds = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    return stability.Cells(lags.astype(float), rates, horizons.astype(float), collapsed, seeds)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_saturating_rule_recovers_the_law_of_its_cells_at_any_scale(scale):
    cells = saturating(4e-3, 11.0, 1.6, scale)
    fit = stability.fit_rule("saturating", cells)
    log_first, log_s0, log_b = fit.parameters
    assert np.exp(log_b) == pytest.approx(1.6, rel=0.1)
    assert np.exp(log_s0) == pytest.approx(11.0, rel=0.25)
    # t_1 belongs to eta / scale, so that a rate of the middle has the same time.
    middle = np.log(2e-3)
    expected = np.log(4e-3) - 1.6 * middle
    assert log_first - np.exp(log_b) * (middle + np.log(scale)) == pytest.approx(expected, abs=0.1)
    scores = {
        name: stability.cross_validate(name, cells, cells.seed % 2).log_likelihood
        for name in ("min", "max", "product", "saturating")
    }
    assert max(scores, key=lambda name: scores[name]) == "saturating"


@pytest.mark.parametrize("rule", ["min", "max"])
def test_a_rule_is_recovered_on_a_grid_of_other_learning_rates(rule):
    """The paper's learning rates are four orders of magnitude below those of the default map."""
    cells = synthetic({"min": min, "max": max}[rule], range(3))
    small = dataclasses.replace(cells, learning_rate=1e-4 * cells.learning_rate)
    fit = stability.fit_rule(rule, small)
    np.testing.assert_allclose(np.exp(fit.parameters), [0.0145e-4, 0.27e-4], rtol=0.15)


def test_the_measured_boundary_and_its_slopes():
    cells = synthetic(max, range(6))
    at_300 = cells[cells.horizon == 300]
    measured = stability.measured_log_eta_max(at_300)
    for lag in LAGS[1:]:
        # Half a step of the grid, log(16) / 8, is 0.17.
        assert measured[float(lag)] == pytest.approx(np.log(max(0.0145 / lag, 0.9e-3)), abs=0.17)
    # No cell of S = 1 collapses within the grid, because 0.0145 is above it.
    assert measured[1.0] == np.inf
    falling = at_300[at_300.max_lag <= 16]
    # S = 1 counts, as a bound.
    assert stability.slope_of_eta_max(falling) == pytest.approx(-1, abs=0.1)
    assert stability.slope_of_eta_max(at_300[at_300.max_lag >= 16]) == pytest.approx(0, abs=0.1)


def test_horizons_are_looked_up_in_the_records():
    record: dict = dict(max_lag=2, learning_rate=1e-3, seed=7, steps=300)
    records = [
        record | {"collapse_step": 120},
        record | {"collapse_step": None},
        record | {"max_lag": 0, "collapse_step": 5},
    ]
    cells = stability.at_horizons(records, (100, 300))
    np.testing.assert_array_equal(cells.collapsed, [False, True, False, False, True, True])
    np.testing.assert_array_equal(cells.horizon, [100, 300] * 3)
    np.testing.assert_array_equal(cells.max_lag, [2, 2, 2, 2, 0, 0])
    with pytest.raises(ValueError, match="600"):
        stability.at_horizons(records, (600,))


def test_balanced_accuracy_weighs_both_kinds_alike():
    cells = synthetic(min, range(2), noise=0.0)
    fit = stability.fit_rule("min", cells)
    assert stability.balanced_accuracy("min", fit, cells) == 1.0
    with pytest.raises(ValueError, match="all stable or all collapsing"):
        stability.balanced_accuracy("min", fit, cells[cells.collapsed])


def test_without_lag_the_staleness_bound_is_infinite():
    fitted = {
        "staleness": [-5.0],
        "min": [-5.0, -1.0],
        "max": [-5.0, -1.0],
        "product": [-2.0, 0.5, 0.5],
    }
    boundaries = {
        name: stability.log_eta_max(name, parameters, [0], 300.0)[0]
        for name, parameters in fitted.items()
    }
    assert boundaries == {
        "staleness": np.inf,
        "min": -1.0 - np.log(300.0),
        "max": np.inf,
        "product": np.inf,
    }
    for power, expected in ((2.0, np.inf), (-2.0, -1.0 - np.log(300.0))):
        assert stability.log_eta_max("smooth", [-5.0, -1.0, power], [0], 300.0)[0] == pytest.approx(
            expected
        )


def test_synchronous_cells_are_judged_but_not_fitted():
    cells = synthetic(max, range(4))
    synchronous = dataclasses.replace(
        cells, max_lag=np.zeros(len(cells)), collapsed=np.arange(len(cells)) < len(cells) / 2
    )
    both = stability.Cells(
        *(
            np.concatenate([getattr(part, field.name) for part in (cells, synchronous)])
            for field in dataclasses.fields(cells)
        )
    )
    alone = stability.cross_validate("max", cells, cells.seed % 2)
    judged = stability.cross_validate("max", both, both.seed % 2)
    assert judged.log_likelihood == alone.log_likelihood
    assert judged.balanced_accuracy_stale == alone.balanced_accuracy
    assert alone.balanced_accuracy_stale == alone.balanced_accuracy
    # A collapse without lag is never foretold.
    assert judged.balanced_accuracy < alone.balanced_accuracy - 0.1
