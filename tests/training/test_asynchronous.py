"""An asynchronous run is replayed to the byte by the synchronous loop, whatever its timing was."""

import json

import pytest

MEASURED = {"metrics.lags": True, "eval_every": 3, "steps": 12}
CASES = {
    # Calls of a half and of a quarter of a step, so that one step has groups of several versions.
    "bounded": {"admission": "bounded", "lag.max_lag": 3, "sampler.batch_prompts": 2},
    "small calls": {"admission": "bounded", "lag.max_lag": 2, "sampler.batch_prompts": 1},
    "in order": {"admission": "in_order", "lag.max_lag": 2, "sampler.batch_prompts": 2},
    "one step off": {"admission": "one_step_off", "lag.max_lag": 1},
    "synchronous": {"admission": "synchronous", "lag.max_lag": 0},
    "failing": {"admission": "bounded", "lag.max_lag": 2, "fails_at": 4},
}


@pytest.fixture(scope="module")
def results(run_on_devices):
    cases = [MEASURED | case for case in CASES.values()]
    printed = run_on_devices("asynchronous_runs", json.dumps(cases), num_devices=2)
    return dict(zip(CASES, json.loads(printed), strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "failing"])
def test_a_run_with_uneven_times_is_replayed_to_the_byte(results, name):
    assert results[name]["same_records"] and results[name]["same_state"]


@pytest.mark.parametrize("name", ["bounded", "small calls"])
def test_lags_vary_and_never_exceed_the_bound(results, name):
    lags = results[name]["lags"]
    assert len(lags) == 12 * 4
    assert min(lags) >= 0 and max(lags) <= CASES[name]["lag.max_lag"]
    assert len(set(lags[4 * 4 :])) > 1  # also behind the first steps, which have no other choice


@pytest.mark.parametrize(
    ("name", "lag"), [("in order", 2), ("one step off", 1), ("synchronous", 0)]
)
def test_a_batch_that_is_bound_to_a_version_has_one_lag(results, name, lag):
    assert results[name]["lags"] == [min(step, lag) for step in range(12) for _ in range(4)]


def test_an_error_of_the_generator_ends_the_learner(results):
    assert results["failing"] == {"error": "no space"}
