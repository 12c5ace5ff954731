"""Tests the relation of the early mean of (log ratio)^2 to the collapse time."""

import numpy as np
import pytest

from staleness_grpo.scaling.early_sign import early_mean, fit_sign


def record(values, collapse_step=None, max_lag=4, every=5):
    return {
        "max_lag": max_lag,
        "collapse_step": collapse_step,
        "steps_run": len(values) * every,
        "trace_every": every,
        "traces": {"log_ratio_second_moment": values},
    }


def test_the_mean_is_over_the_blocks_from_step_10_to_step_50_before_the_collapse():
    values = [9.0, 9.0] + [1.0] * 4 + [3.0] * 4 + [100.0] * 10
    assert early_mean(record(values)) == 2.0
    assert early_mean(record(values, collapse_step=30)) == 1.0
    assert early_mean(record(values, collapse_step=10)) is None
    assert early_mean(record([1e-12] * 20)) is None
    with_nan = [9.0, 9.0, float("nan"), 4.0] + [4.0] * 16
    assert early_mean(record(with_nan)) == 4.0


def test_the_fit_finds_a_known_relation_with_censored_runs():
    rng = np.random.default_rng(0)
    records = []
    for mean in np.geomspace(0.01, 10, 200):
        time = 700 * (mean / 0.1) ** -0.7 * np.exp(0.3 * rng.normal())
        step = int(time) if time < 600 else None
        records.append(record([mean] * 120, step))
    found = fit_sign(records)
    assert found.time == pytest.approx(700, rel=0.15)
    assert found.slope == pytest.approx(0.7, abs=0.05)
    assert found.sigma == pytest.approx(0.3, abs=0.08)
    assert found.log_time(0.1) == pytest.approx(np.log(found.time))
    assert found.log_time(1.0) == pytest.approx(np.log(found.time) - found.slope * np.log(10))


def test_too_few_collapses_give_no_relation():
    assert fit_sign([record([1.0] * 40, 80), record([1.0] * 40, 60), record([0.1] * 40)]) is None
