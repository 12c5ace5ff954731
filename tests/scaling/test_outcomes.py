"""Synthetic rewards with known outcomes: pass rates, partial credit and negative rewards."""

import numpy as np
import pytest

from staleness_grpo.scaling import outcomes
from staleness_grpo.scaling.collapse import detect_collapse

EVERY, SAMPLES, EVALUATIONS = 5, 256, 60


def record_of(reward_X, finite=True, lowest=0.0):
    collapse = detect_collapse(reward_X, EVERY, SAMPLES, lowest)
    step = None if collapse is None else collapse.step
    traces = {"eval_reward": list(reward_X)}
    return {"finite": finite, "collapse_step": step, "lowest_reward": lowest, "traces": traces}


def ramp(start, end, hold):
    """Returns rewards that go from start to end over 30 evaluations, then follow `hold`."""
    return np.concatenate([np.linspace(start, end, 30), np.broadcast_to(hold, 30)])


# The shapes of runs whose reward starts at 0.25, on a task where 0.8 can be reached.
SHAPES = {
    "learned": [ramp(0.25, 0.8, 0.8), ramp(0.25, 0.6, 0.6), ramp(0.25, 0.9, 0.6)],
    "stalled": [
        ramp(0.25, 0.25, 0.25),
        ramp(0.25, 0.3, 0.3),
        ramp(0.25, 0.45, 0.3),
        ramp(0.25, 0.2, 0.2),
    ],
    "collapsed": [ramp(0.25, 0.8, 0.0), ramp(0.25, 0.8, np.linspace(0.8, 0, 30)), ramp(0.8, 0, 0)],
    "recovered": [
        ramp(0.25, 0.8, np.r_[np.zeros(10), np.linspace(0, 0.8, 10), np.full(10, 0.8)]),
        ramp(0.25, 0.8, np.r_[np.zeros(10), np.full(20, 0.6)]),
    ],
}
# The same shapes as rewards of another kind: (scale, offset, standard deviation of the noise).
KINDS = {
    "pass rates": (1.0, 0.0, 0.02),
    "without noise": (1.0, 0.0, 0.0),
    "up to 100": (100.0, 0.0, 2.0),
    "negative": (1.0, -1.0, 0.02),
    "from 10 to 11": (1.0, 10.0, 0.02),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_each_shape_has_its_outcome_whatever_the_kind_of_reward(kind, seed):
    scale, offset, noise = KINDS[kind]
    rng = np.random.default_rng(seed)
    names, records = [], []
    for name, shapes in SHAPES.items():
        for shape in shapes:
            reward_X = scale * shape + offset + noise * rng.normal(size=len(shape))
            names.append(name)
            reward_X = np.clip(reward_X, offset, scale + offset)
            records.append(record_of(reward_X, lowest=offset))
    assert outcomes.outcomes(records) == names
    assert outcomes.count(records) == {name: len(shapes) for name, shapes in SHAPES.items()}


@pytest.mark.parametrize("seed", range(20))
def test_rare_rewards_that_only_wobble_are_no_collapse(seed):
    """One of fifty responses is right. With 64 responses, the reward wobbles by its own size."""
    rng = np.random.default_rng(seed)
    wobbling = record_of(rng.binomial(64, 0.02, EVALUATIONS) / 64)
    learning = record_of(ramp(0.02, 0.8, 0.8))
    assert outcomes.outcomes([wobbling, learning]) == ["stalled", "learned"]


def test_alone_a_run_that_gains_only_its_noise_has_not_learned():
    """The best run of the map is itself, so the share of what can be gained says nothing."""
    rng = np.random.default_rng(0)
    flat = record_of(0.5 + 0.05 * rng.normal(size=EVALUATIONS))
    assert outcomes.outcomes([flat]) == ["stalled"]
    assert outcomes.outcomes([record_of(ramp(0.2, 0.4, 0.4))]) == ["learned"]


def test_parameters_that_are_not_finite_are_a_collapse():
    records = [record_of(ramp(0.25, 0.8, 0.8)), record_of(ramp(0.25, 0.8, 0.8), finite=False)]
    assert outcomes.outcomes(records) == ["learned", "collapsed"]


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the evaluation at step 10 is not finite"):
        detect_collapse(np.array([0.1, 0.2, np.nan, 0.3]), EVERY, SAMPLES)
