"""Intervals of the bias experiment resample whole problems, and those of the paired bias trainings.

With two problems, the ends of an interval are the problems' own values, as in
`tests.experiments.test_seed_intervals`. A problem has many cells here, and resampled cells would
give a narrower interval.
"""

import itertools

import numpy as np
import pytest

from experiments.bias import law, law_claims
from experiments.bias.claim_kinds import Bootstrap
from experiments.bias.law import CellTable
from experiments.paired_bias import analysis

LAGS = (1, 2, 4, 8, 16)
RATES = 2.0 ** np.arange(-14, -4)
SLOPES, GAINS = (1.0, 1.5), (2.0, 8.0)


def bootstrap():
    return Bootstrap(np.random.default_rng(0), num_resamples=400)


def cells_of_two_problems(**of_cell):
    """Returns clip-free cells with bias = gain x^slope of each problem.

    Args:
      of_cell: fields of a cell, each a function of (draw, lag, rate).
    """
    return CellTable(
        [
            {
                "draw": draw,
                "max_lag": lag,
                "learning_rate": float(rate),
                "eta_rms_age": lag * rate,
                "displacement": lag * rate,
                "clip_fraction": 0.0,
                "bias": GAINS[draw] * (lag * rate) ** SLOPES[draw],
            }
            | {name: value(draw, lag, float(rate)) for name, value in of_cell.items()}
            for draw, lag, rate in itertools.product((0, 1), LAGS, RATES)
        ]
    )


def test_the_slope_of_the_law():
    found = law.slope_summary(cells_of_two_problems(), "eta_rms_age", bootstrap())
    np.testing.assert_allclose(found["slope_ci"], SLOPES, rtol=1e-9)
    assert (found["num_draws"], found["num_cells"]) == (2, 2 * len(LAGS) * len(RATES))


def test_the_end_of_the_linear_range():
    """Problem 0 leaves the line with the first clipped token, problem 1 two to six rates later.

    The number of rates differs by lag. So resampled pairs of problem and lag would have other ends.
    """
    first_clipped = {lag: 3 for lag in LAGS}
    later = dict(zip(LAGS, (2, 3, 4, 5, 6), strict=True))

    def is_off(draw, lag, rate):
        return rate >= RATES[first_clipped[lag] + draw * later[lag]]

    cells = cells_of_two_problems(
        clip_fraction=lambda draw, lag, rate: 0.1 * (rate >= RATES[first_clipped[lag]]),
        bias=lambda draw, lag, rate: lag * rate * (3 if is_off(draw, lag, rate) else 1),
    )
    found = law.linear_range(cells, bootstrap())
    np.testing.assert_allclose(found["end_minus_clip_ci"], [0, 4], atol=1e-9)
    # The last linear rate times S, at the lag where it is smallest.
    ends = [
        min(lag * RATES[first_clipped[lag] + draw * later[lag] - 1] for lag in LAGS)
        for draw in (0, 1)
    ]
    np.testing.assert_allclose(found["max_s_eta_linear_ci"], ends, rtol=1e-12)
    assert found["num_pairs"] == 2 * len(LAGS)


def test_the_gain_of_cyclic_lag_over_constant_lag():
    """The ratio of each problem's gains is 2 or 4. The gains themselves differ much more."""

    def cells(schedule):
        def bias(draw, lag, rate):
            # Noise that cancels over the lags.
            noise = 3.0 ** (LAGS.index(lag) - 2)
            return lag * rate * noise * GAINS[draw] * ((2, 4)[draw] if schedule == "cyclic" else 1)

        fields = {"optimizer": "sgd", "gradient": "exact", "schedule": schedule}
        table = cells_of_two_problems(bias=bias, s_eta=lambda draw, lag, rate: lag * rate)
        return [record | fields for record in table.records]

    table = CellTable(cells("constant") + cells("cyclic"))
    against_s_eta = {"slope": 1.0, "slope_ci": (1.0, 1.0), "num_draws": 2}
    laws = {"sgd": {"cyclic": {"against_s_eta": against_s_eta}}}
    same_line, _ = law_claims.cyclic_claims(table, laws, "sgd", bootstrap())
    assert same_line.interval == pytest.approx((2, 4), rel=1e-12)
    assert (same_line.n, same_line.unit) == (2, "problems")


def test_the_drift_and_its_growth():
    """Drift is that of the law times 2 or 6 in its square, and grows with S as S^1 or S^2."""

    def displacement(draw, lag, rate):
        # Which rates have more or less than the mean cancels over the rates of a lag.
        spread = 1 + 0.5 * (-1) ** int(np.log2(rate))
        return rate * lag * np.sqrt((2, 6)[draw] * spread)

    fields = {"optimizer": "sgd", "gradient": "sampled", "schedule": "constant"}
    table = cells_of_two_problems(
        displacement=displacement,
        surrogate_gradient=lambda *cell: 1.0,
        noise=lambda *cell: 0.0,
    )
    drift, _ = law_claims.drift_claims(
        CellTable([record | fields for record in table.records]), bootstrap()
    )
    assert drift.interval == pytest.approx((2, 6), rel=1e-12)
    assert (drift.n, drift.unit) == (2, "problems")
    table = cells_of_two_problems(
        displacement=lambda draw, lag, rate: 1e-3 * lag ** (1.0 + draw),
        surrogate_gradient=lambda *cell: 1.0,
        noise=lambda *cell: 0.0,
    )
    growth = law_claims.crossover_finding(
        CellTable([record | fields for record in table.records]), float(RATES[0]), bootstrap()
    )
    assert growth.interval == pytest.approx((1, 2), rel=1e-9)
    assert (growth.n, growth.unit) == (2, "problems")


def test_a_median_over_problems():
    finding = bootstrap().median_finding("name", "A sentence.", np.array([3.0, 5.0]))
    assert finding.interval == (3, 5) and (finding.n, finding.unit) == (2, "problems")


def test_the_slope_of_the_paired_bias_resamples_trainings():
    """Of four trainings two have x = 1, and the other two x = e, with slopes of 1 and 3 from there.

    Of the resamples with both x, 2 in 7 have one of the two slopes alone.
    """
    cells = [
        {
            "max_lag": 1,
            "clip_fraction": 0.0,
            "s_eta": float(np.exp(log_x)),
            "bias_norm": float(np.exp(log_bias)),
        }
        for log_x, log_bias in ((0, 0), (0, 0), (1, 1), (1, 3))
    ]
    found = analysis.slope(cells, "s_eta")["unclipped"]
    np.testing.assert_allclose(found["interval"], [1, 3], rtol=1e-9)
    assert found["n"] == 4
