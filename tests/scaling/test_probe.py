"""Tests that a probe finds the boundary of each lag with few runs."""

import math

import pytest

from staleness_grpo.scaling.probe import probe

RATES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


def visited(boundaries, rates=RATES):
    """Returns the runs of a probe, where a run collapses above the boundary of its lag."""

    def run(lag, rate):
        collapsed = rate > boundaries[lag]
        return collapsed, (lag, rate, collapsed)

    return probe(run, list(boundaries), rates)


@pytest.mark.parametrize(
    "boundaries",
    [
        {0: 50.0, 1: 10.0, 16: 3.0},
        {0: 1000.0, 1: 1000.0, 16: 1000.0},
        {0: 0.5, 1: 0.5, 16: 0.5},
        {0: 200.0, 1: 5.0, 16: 5.0},
    ],
)
def test_the_boundary_of_each_lag_is_between_two_neighbors(boundaries):
    runs = visited(boundaries)
    assert len(set(runs)) == len(runs)
    for lag, boundary in boundaries.items():
        # What is stable at a larger lag is stable here.
        stable = [rate for at, rate, collapsed in runs if not collapsed and at >= lag]
        falling = [rate for at, rate, collapsed in runs if collapsed and at == lag]
        low = max(stable, default=0.0)
        high = min(falling, default=math.inf)
        assert low <= boundary < high
        between = [rate for rate in RATES if low < rate < high]
        assert between == []


def test_a_probe_halves_and_never_scans():
    runs = visited({0: 50.0, 1: 10.0, 16: 3.0})
    for lag in (0, 1, 16):
        assert sum(1 for at, _, _ in runs if at == lag) <= math.ceil(math.log2(len(RATES) + 1))
