"""Lag schedules keep their bounds and start, and due() is the inverse of behavior_versions()."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from staleness_grpo.staleness import schedule as schedule_lib

common = dict(
    name=st.sampled_from(sorted(schedule_lib.SCHEDULES)),
    seed=st.integers(0, 2**31 - 1),
    start=st.sampled_from(schedule_lib.STARTS),
)
schedules = st.one_of(
    st.builds(
        schedule_lib.make_schedule,
        max_lag=st.integers(0, 9),
        num_groups=st.integers(1, 5),
        **common,
    ),
    st.builds(
        schedule_lib.make_schedule,
        max_lag=st.integers(2, 9),
        num_groups=st.sampled_from([6, 12]),
        updates_per_batch=st.sampled_from([2, 3]),
        **common,
    ),
)


def versions(schedule, num_steps):
    return np.stack([schedule.behavior_versions(t) for t in range(num_steps)])


@given(schedule=schedules, num_steps=st.integers(1, 40))
def test_lags_stay_within_the_bound_and_version_zero(schedule, num_steps):
    versions_IxN = versions(schedule, num_steps)
    lags_IxN = np.arange(num_steps)[:, None] - versions_IxN
    assert versions_IxN.dtype == np.int32
    assert versions_IxN.shape == (num_steps, schedule.num_groups)
    assert versions_IxN.min() >= 0
    assert lags_IxN.min() >= 0
    assert lags_IxN.max() <= schedule.max_lag


@given(schedule=schedules, num_steps=st.integers(1, 40))
def test_due_is_the_inverse_of_behavior_versions(schedule, num_steps):
    due = []
    for version in range(num_steps):
        steps_W, slots_W = schedule.due(version, num_steps)
        pairs = list(zip(steps_W.tolist(), slots_W.tolist(), strict=True))
        assert pairs == sorted(pairs)
        due += [(step, slot, version) for step, slot in pairs]
    expected = [
        (t, n, v)
        for t, row in enumerate(versions(schedule, num_steps))
        for n, v in enumerate(row.tolist())
    ]
    assert sorted(due) == expected


@given(schedule=schedules, step=st.integers(0, 10**6))
def test_a_step_does_not_depend_on_what_was_asked_before(schedule, step):
    alone = schedule.behavior_versions(step)
    schedule.due(step, step + 5)
    schedule.behavior_versions(step + 1)
    np.testing.assert_array_equal(schedule.behavior_versions(step), alone)
    np.testing.assert_array_equal(schedule.lags(np.array([step + 1, step]))[1], step - alone)


@pytest.mark.parametrize(
    ("name", "max_lag", "start", "expected"),
    [
        ("constant", 0, "initial_policy", [0, 1, 2, 3, 4, 5, 6]),
        ("constant", 2, "initial_policy", [0, 0, 0, 1, 2, 3, 4]),
        ("constant", 2, "synchronous", [0, 1, 0, 1, 2, 3, 4]),
        ("cyclic", 0, "initial_policy", [0, 1, 2, 3, 4, 5, 6]),
        ("cyclic", 1, "initial_policy", [0, 1, 2, 3, 4, 5, 6]),
        ("cyclic", 3, "initial_policy", [0, 0, 0, 3, 3, 3, 6]),
        ("cyclic", 3, "synchronous", [0, 1, 2, 3, 3, 3, 6]),
    ],
)
def test_versions_written_out(name, max_lag, start, expected):
    schedule = schedule_lib.make_schedule(name, max_lag, num_groups=2, start=start)
    np.testing.assert_array_equal(
        versions(schedule, 7), np.repeat(np.array(expected)[:, None], 2, axis=1)
    )


@pytest.mark.parametrize(
    ("name", "max_lag", "expected"),
    [
        ("constant", 1, [0, 0, 2, 2, 4, 4]),  # synchronous batches of two updates each
        ("constant", 3, [0, 0, 0, 0, 2, 2]),  # batches that start two updates old
        # A snapshot every three updates, which the batches of steps 0, 2 and 4 read.
        ("cyclic", 4, [0, 0, 0, 0, 3, 3]),
    ],
)
def test_versions_of_minibatches_written_out(name, max_lag, expected):
    schedule = schedule_lib.make_schedule(name, max_lag, num_groups=6, updates_per_batch=2)
    np.testing.assert_array_equal(
        versions(schedule, 6), np.repeat(np.array(expected)[:, None], 3, axis=1)
    )


def test_minibatches_are_the_slots_of_their_batch():
    batches = schedule_lib.make_schedule("uniform", 4, num_groups=6, seed=3)
    schedule = schedule_lib.make_schedule("uniform", 5, num_groups=6, seed=3, updates_per_batch=2)
    for step in range(0, 40, 2):
        both = [schedule.behavior_versions(step), schedule.behavior_versions(step + 1)]
        np.testing.assert_array_equal(np.concatenate(both), batches.behavior_versions(step))


@pytest.mark.parametrize(("max_lag", "updates_per_batch"), [(1, 3), (5, 4)])
def test_updates_per_batch_must_fit(max_lag, updates_per_batch):
    with pytest.raises(ValueError, match="updates_per_batch"):
        schedule_lib.make_schedule(
            "constant", max_lag, num_groups=6, updates_per_batch=updates_per_batch
        )


def test_synchronous_start_of_uniform_ends_at_max_lag():
    schedule = schedule_lib.make_schedule("uniform", 4, num_groups=500, start="synchronous")
    lags_IxN = np.arange(5)[:, None] - versions(schedule, 5)
    assert (lags_IxN[:4] == 0).all()
    assert set(lags_IxN[4]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("step", "choices"), [(2, 3), (7, 8), (5000, 8)])
def test_uniform_lags_are_uniform(step, choices):
    count = 40_000
    schedule = schedule_lib.make_schedule("uniform", 7, num_groups=count, seed=3)
    observed = np.bincount(step - schedule.behavior_versions(step), minlength=choices)
    expected = count / choices
    # Chi-square has mean choices - 1 and variance 2 (choices - 1). The bound is 5 standard
    # deviations, for one fixed seed.
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert len(observed) == choices
    assert statistic < choices - 1 + 5 * np.sqrt(2 * (choices - 1))


def test_uniform_lags_are_independent_over_seeds_steps_and_slots():
    def lags(seed, num_steps=400, num_groups=50):
        schedule = schedule_lib.make_schedule("uniform", 15, num_groups, seed)
        return schedule.lags(np.arange(1000, 1000 + num_steps)).astype(float)

    lags_IxN = lags(0)
    for other in (lags(1), np.roll(lags_IxN, 1, axis=0), np.roll(lags_IxN, 1, axis=1)):
        # 20,000 pairs: a correlation of independent pairs has standard deviation 0.007.
        assert abs(np.corrcoef(lags_IxN.ravel(), other.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(lags(0), lags_IxN)


@pytest.mark.parametrize(
    "bad",
    [
        dict(name="sometimes", max_lag=1, num_groups=1),
        dict(name="constant", max_lag=-1, num_groups=1),
        dict(name="constant", max_lag=1, num_groups=0),
        dict(name="constant", max_lag=1, num_groups=1, start="late"),
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="must be one of|need max_lag"):
        schedule_lib.make_schedule(**bad)
