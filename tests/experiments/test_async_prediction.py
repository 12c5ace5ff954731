"""The simulated pipeline predicts the lags and the speed of two threads with known times."""

import numpy as np
import pytest

from experiments.async_train.prediction import predict
from tests.helpers.tiny import asynchronous_config


def played(num_steps, num_calls, max_lag, call_seconds, learner_seconds):
    """Plays generator and learner by hand; returns the records of metrics.jsonl."""
    published = [0.0]  # the time at which each version is there
    call_end, free, records = 0.0, 0.0, []
    previous = 0.0
    for step in range(num_steps):
        lags = []
        for _ in range(num_calls):
            start = max(call_end, published[max(step - max_lag, 0)])
            # No version above `step` can be there, and the times of all others are known.
            version = max(v for v, at in enumerate(published) if at <= start)
            lags.append(step - version)
            call_end = start + call_seconds
        begin = max(free, call_end)
        waiting = begin - free
        free = begin + learner_seconds
        published.append(free)
        records.append(
            {
                "time_step": free - previous,
                "time_waiting": waiting,
                "time_generation": num_calls * call_seconds,
                "lag_histogram": np.bincount(lags, minlength=max_lag + 1),
            }
        )
        previous = free
    return records


@pytest.mark.parametrize(
    ("max_lag", "call_seconds", "learner_seconds"),
    [
        (1, 0.1003, 0.05),  # the generator is slower, so lags are short
        (2, 0.0101, 0.153),  # the learner is slower, so every lag is S
        (4, 0.0507, 0.2),  # as fast as each other
    ],
)
def test_constant_times_are_predicted_exactly(max_lag, call_seconds, learner_seconds):
    fields = {"asynchronous.admission": "bounded", "lag.max_lag": max_lag}
    config = asynchronous_config(steps=60, **fields)
    num_calls = config.num_prompts // config.sampler.batch_prompts
    records = played(60, num_calls, max_lag, call_seconds, learner_seconds)
    found = predict(records, config)
    assert found["call_seconds"] == pytest.approx(call_seconds)
    assert found["learner_seconds"] == pytest.approx(learner_seconds)
    measured = found["measured"]["seconds_per_step"]
    assert found["predicted"]["seconds_per_step"] == pytest.approx(measured, rel=2e-2)
    assert found["misplaced_share"] < 0.02


def test_a_short_run_is_not_compared():
    config = asynchronous_config(steps=6, **{"lag.max_lag": 3})
    assert predict(played(6, 2, 3, 0.1, 0.1), config) is None


def test_an_admission_that_binds_calls_has_its_one_lag():
    """The records have other lags, so all calls are misplaced."""
    config = asynchronous_config(
        steps=60, **{"asynchronous.admission": "in_order", "lag.max_lag": 2}
    )
    found = predict(played(60, 2, 2, 0.1003, 0.05), config)
    assert found["predicted"]["lag_mean"] == 2 and found["predicted"]["lag_shares"][2] == 1
    assert found["misplaced_share"] > 0.9
