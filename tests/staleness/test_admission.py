"""What an asynchronous generator may start follows the capacity rule and the fixed lags."""

import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.staleness.admission import ADMISSIONS, admitted_version, check_asynchronous

GOOD = {"admission": "bounded", "generator_devices": 0, "in_flight": "finish", "look_every": 1}


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_bounded_is_the_capacity_rule_of_groups(max_lag):
    """Compares with the rule as AReaL and SkyRL write it, in numbers of groups."""
    num_groups = 5
    for version in range(6):
        for step in range(version, 12):
            accepted_and_running = step * num_groups  # when the first group of this step starts
            starts = (max_lag + version + 1) * num_groups > accepted_and_running
            expected = version if starts else None
            assert admitted_version("bounded", step, version, max_lag) == expected


@pytest.mark.parametrize(
    ("step", "newest", "version"), [(0, 0, 0), (2, 0, 0), (3, 0, None), (3, 1, 1), (3, 2, 1)]
)
def test_in_order_binds_a_step_to_one_version(step, newest, version):
    assert admitted_version("in_order", step, newest, max_lag=2) == version


def test_the_fixed_lags_are_in_order_with_their_own_bound():
    for name, max_lag in (("one_step_off", 1), ("synchronous", 0)):
        for newest in range(4):
            for step in range(newest, 8):
                given = admitted_version(name, step, newest, max_lag)
                assert given == admitted_version("in_order", step, newest, max_lag)


@pytest.mark.parametrize(
    ("fields", "max_lag", "line"),
    [
        ({"admission": "fifo"}, 1, "admission=fifo: choose one of bounded, in_order, one_step_off"),
        ({"generator_devices": -1}, 1, "generator_devices=-1: give a number >= 0"),
        (
            {"admission": "one_step_off"},
            3,
            "admission=one_step_off: its lag is 1, but lag.max_lag=3",
        ),
        ({"admission": "synchronous"}, 1, "admission=synchronous: its lag is 0"),
    ],
)
def test_wrong_fields_are_refused(fields, max_lag, line):
    with pytest.raises(FieldError) as error:
        check_asynchronous(GOOD | fields, max_lag)
    assert str(error.value).startswith(line)


def test_every_admission_starts_with_version_0():
    assert {admitted_version(name, 0, 0, 4) for name in ADMISSIONS} == {0}
