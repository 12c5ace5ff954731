"""Intervals resample whole groups: more rows of the same groups do not narrow them."""

import numpy as np
import pytest

from staleness_grpo.scaling import bootstrap


def mean_interval(values, groups, num_resamples=400):
    return bootstrap.group_interval(groups, lambda rows: values[rows].mean(), num_resamples)


def test_with_two_groups_the_ends_are_the_groups_own_values():
    """A quarter of the resamples draws one group twice, and a quarter the other one."""
    values = np.concatenate([np.linspace(0, 2, 100), np.linspace(4, 8, 100)])
    low, high = mean_interval(values, np.repeat([7, 3], 100))
    np.testing.assert_allclose([low, high], [1.0, 6.0], rtol=1e-12)


@pytest.mark.parametrize("copies", [2, 25])
def test_copies_of_the_rows_of_each_group_leave_the_interval_as_it_is(copies):
    rng = np.random.default_rng(0)
    groups, values = np.repeat(np.arange(8), 3), rng.normal(size=24)
    once = mean_interval(values, groups)
    again = mean_interval(np.repeat(values, copies), np.repeat(groups, copies))
    np.testing.assert_allclose(again, once, rtol=1e-12)
    # In any order of the rows.
    order = rng.permutation(24)
    np.testing.assert_allclose(mean_interval(values[order], groups[order]), once, rtol=1e-12)


def test_a_resample_draws_as_many_groups_as_there_are_with_all_their_rows():
    groups = np.array([5, 1, 5, 9, 5])
    rows_of = {1: [1], 5: [0, 2, 4], 9: [3]}
    seen = set()
    for rows in bootstrap.resampled_rows(groups, 100):
        drawn = {label: int(np.sum(groups[rows] == label)) for label in rows_of}
        counts = {label: drawn[label] // len(rows_of[label]) for label in rows_of}
        assert sum(counts.values()) == 3
        expected = np.concatenate([rows_of[label] * counts[label] for label in rows_of])
        assert sorted(rows) == sorted(expected)
        seen.add(tuple(counts.values()))
    assert len(seen) == 10  # all ways to draw three of three with replacement


def test_the_interval_of_a_mean_is_that_of_the_groups_means():
    """The standard error of a mean over groups is the standard deviation over sqrt(groups)."""
    values = np.repeat(np.random.default_rng(3).normal(size=8), 25)  # 200 rows that are 8 numbers
    low, high = mean_interval(values, np.repeat(np.arange(8), 25))
    expected = 2 * 1.96 * values[::25].std() / np.sqrt(8)
    # A quantile of 400 resamples varies by a tenth. Resampled rows would give a fifth of this.
    assert high - low == pytest.approx(expected, rel=0.2)


def test_a_resample_without_a_statistic_is_ignored():
    values = np.array([1.0, 3.0, np.nan])
    low, high = bootstrap.group_interval(np.arange(3), lambda rows: values[rows].max(), 400)
    assert (low, high) == (1.0, 3.0)


def test_one_value_of_each_group_is_drawn_with_replacement():
    interval = bootstrap.value_interval(np.array([2.0, 5.0]), np.random.default_rng(0), 400)
    assert interval == (2.0, 5.0)


def test_interval_covers_the_mean_at_about_its_rate():
    rng = np.random.default_rng(0)
    covered = [
        low < 0 < high
        for low, high in (
            bootstrap.value_interval(rng.normal(size=20), rng, 500) for _ in range(300)
        )
    ]
    # The percentile interval of 20 values is a little short; in theory it covers 92 to 93 %.
    assert 0.88 < np.mean(covered) < 0.97
