"""A collapse is found where it is, and told from a slow decay and from noise."""

import numpy as np
import pytest

from staleness_grpo.scaling.collapse import Collapse, detect_collapse

EVERY, SAMPLES = 5, 512


def collapse_of(rate_X) -> Collapse:
    collapse = detect_collapse(rate_X, EVERY, SAMPLES)
    assert collapse is not None
    return collapse


def noisy(rate_X, seed=0):
    return np.random.default_rng(seed).binomial(SAMPLES, rate_X) / SAMPLES


def rise_then(tail, num_rising=30):
    """Returns pass rates that rise from 0.3 to 0.8 over 30 evaluations, then follow `tail`."""
    return np.concatenate([np.linspace(0.3, 0.8, num_rising), tail])


@pytest.mark.parametrize("seed", range(5))
def test_a_sudden_collapse_is_found_where_it_is(seed):
    collapse = collapse_of(noisy(rise_then(np.zeros(30)), seed))
    # As 0.7^2 = 0.49, the average is below half its peak at the second evaluation after the fall,
    # which is step 155.
    assert collapse.step == pytest.approx(155, abs=EVERY)
    assert collapse.interval[0] <= collapse.step <= collapse.interval[1] <= 165
    assert collapse.stayed_down
    assert collapse.fall_steps <= 15


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "rate_X",
    [
        np.full(60, 0.3),  # never learns
        np.full(60, 0.02),  # hardly ever right: 10 of 512, with noise of a third
        np.full(60, 0.0005),  # right now and then: most evaluations are 0, and a few 1 of 512
        rise_then(np.full(30, 0.8)),
        rise_then(np.linspace(0.8, 0.5, 30)),  # slow decay to above half the peak
        rise_then(np.tile([0.8, 0.1, 0.8], 10)),  # single bad evaluations
        # Down for 15 steps, which do not last.
        rise_then(np.array([0.8] * 10 + [0.0] * 3 + [0.8] * 17)),
        # Falls as the run ends, so that nobody can tell whether it lasts.
        rise_then(np.array([0.8] * 27 + [0.0] * 3)),
    ],
)
def test_no_collapse(rate_X, seed):
    assert detect_collapse(noisy(rate_X, seed), EVERY, SAMPLES) is None


@pytest.mark.parametrize("num_before", [4, 20, 50])
def test_a_fall_to_rewards_that_are_all_0_is_found(num_before):
    """More than half of the differences may be 0 then."""
    rate_X = np.concatenate([np.full(num_before, 0.1), np.zeros(60 - num_before)])
    assert collapse_of(noisy(rate_X)).step == pytest.approx(5 * (num_before + 1), abs=2 * EVERY)
    # Rewards that are no rates have the noise of their differences.
    collapse = detect_collapse(40 * rate_X, EVERY, SAMPLES)
    assert collapse is not None and collapse.step == pytest.approx(5 * (num_before + 1), abs=5)


def test_a_recovery_is_told_from_staying_down():
    down = np.concatenate([np.zeros(8), np.linspace(0, 0.8, 22)])
    recovered = collapse_of(noisy(rise_then(down)))
    assert recovered.step == pytest.approx(155, abs=EVERY) and not recovered.stayed_down


def test_a_slow_decay_past_half_the_peak_is_told_by_its_fall():
    slow = collapse_of(noisy(rise_then(np.linspace(0.8, 0.0, 60))))
    assert slow.fall_steps > 100
    # The rate is 0.4 after 30 of the 60 evaluations down the slope. The average's memory adds some
    # 10 steps.
    assert slow.step == pytest.approx(150 + 150 + 12, abs=10)
    assert slow.interval[0] < slow.interval[1]


def test_a_run_frozen_after_its_collapse_counts():
    assert collapse_of(rise_then(np.zeros(8))).step == 155
