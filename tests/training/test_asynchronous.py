"""An asynchronous run is replayed to the byte by the synchronous loop, whatever its timing was."""

import json

import pytest

MEASURED = {"metrics.lags": True, "eval_every": 3, "steps": 12}
IN_FLIGHT = {"asynchronous.admission": "bounded", "task.max_response_length": 6}
CASES = {
    # A call has half of a step's groups, so that one step may have groups of several versions.
    "bounded": {"asynchronous.admission": "bounded"},
    "in order": {"asynchronous.admission": "in_order", "lag.max_lag": 2},
    "continued": IN_FLIGHT | {"asynchronous.in_flight": "continue", "asynchronous.look_every": 2},
    "recomputed": IN_FLIGHT | {"asynchronous.in_flight": "recompute"},
    "failing": {"asynchronous.admission": "bounded", "lag.max_lag": 2, "fails_at": 4},
}


@pytest.fixture(scope="module")
def results(run_on_devices):
    cases = [MEASURED | case for case in CASES.values()]
    printed = run_on_devices("asynchronous_runs", json.dumps(cases), num_devices=2)
    return dict(zip(CASES, json.loads(printed), strict=True))


@pytest.mark.parametrize("name", ["bounded", "in order", "continued", "recomputed"])
def test_a_run_with_uneven_times_is_replayed_to_the_byte(results, name):
    assert results[name]["same_records"] and results[name]["same_state"]


def test_lags_vary_and_never_exceed_the_bound(results):
    lags = results["bounded"]["lags"]
    assert len(lags) == 12 * 4
    assert min(lags) >= 0 and max(lags) <= 3
    later = lags[4 * 4 :]  # the first steps have no other choice
    assert min(later) < max(later) == 3


def test_a_batch_that_is_bound_to_a_version_has_one_lag(results):
    assert results["in order"]["lags"] == [min(step, 2) for step in range(12) for _ in range(4)]


def test_an_error_of_the_generator_ends_the_learner(results):
    assert results["failing"] == {"error": "no space"}
