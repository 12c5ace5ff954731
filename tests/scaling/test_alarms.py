"""Early signs are read before the collapse alone, and alarms are judged on other seeds."""

import numpy as np
import pytest

from staleness_grpo.scaling import alarms


def record(collapse_step, trace, seed=0, max_lag=8):
    return dict(
        max_lag=max_lag,
        seed=seed,
        collapse_step=collapse_step,
        steps_run=5 * len(trace),
        trace_every=5,
        traces={
            "entropy": list(trace),
            "gradient_cosine": list(trace),
            "gradient_cosine_ceiling": [0.5] * len(trace),
        },
    )


def test_a_trace_ends_at_the_collapse_or_at_the_given_step():
    trace = np.arange(20.0)
    assert alarms.before_collapse(record(None, trace), "entropy").tolist() == trace.tolist()
    assert alarms.before_collapse(record(40, trace), "entropy").tolist() == trace[:8].tolist()
    assert alarms.before_collapse(record(40, trace), "entropy", 15).tolist() == [0, 1, 2]
    assert alarms.before_collapse(record(3, trace), "entropy").tolist() == [0]  # at least one block
    assert alarms.relative_cosine(record(15, trace)) == pytest.approx(2 * 1.0)


def test_an_alarm_that_is_known_at_the_collapse_alone_foretells_nothing():
    low, last = np.zeros(40), np.where(np.arange(40) < 29, 0.0, 1.0)
    records = [record(None, low, seed) for seed in range(4)]
    records += [record(150, last, seed) for seed in range(4)]
    result = alarms.alarm(records, "entropy")
    assert result == {"false_alarms": 0.0, "found": 0.0, "median_lead": None, "n": 4}


def test_without_both_outcomes_nothing_is_judged():
    stable = [record(None, np.arange(20.0), seed) for seed in range(4)]
    falling = [record(50, np.arange(20.0), seed) for seed in range(4)]
    for records in (
        stable,
        falling,
        [*falling, stable[0]],
        [*falling, *(stable[i] for i in (0, 1))],
    ):
        assert alarms.alarm(records, "entropy") is None  # a half has no stable run, or none falls
    assert alarms.alarm([*falling, *stable], "entropy") is not None
    assert alarms.cosine(stable) is None and alarms.cosine(falling) is None


def test_roc_area_counts_pairs_and_half_the_ties():
    assert alarms.roc_area(np.array([2.0, 1.0]), np.array([0.0, 1.0])) == (3 + 0.5) / 4


def test_an_alarm_leads_the_collapse_by_the_steps_since_it_went_off():
    low, rising = np.zeros(40), np.where(np.arange(40) < 20, 0.0, 1.0)
    records = [record(None, low + 0.01 * seed, seed) for seed in range(4)]
    records += [record(150, rising, seed) for seed in range(4)]
    # Below the least lag that counts, a stable run whose alarm would be false.
    records += [record(None, rising, seed, max_lag=1) for seed in range(4)]
    result = alarms.alarm(records, "entropy")
    # The first block above the threshold is that of steps 100 to 104. Its mean is known after it.
    assert result["found"] == 1 and result["median_lead"] == 45 and result["n"] == 4
    assert alarms.cosine(records)["n"] == 8
    assert alarms.cosine(records)["median_by_lag"]["1"]["collapsed"]["cosine"] is None
