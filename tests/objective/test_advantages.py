"""Group advantages have the right values, exact zeros and no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.objective.advantages import group_advantages, optimal_baseline_weights
from tests.helpers import reference


@pytest.mark.parametrize("normalize_std", [True, False])
def test_matches_reference(normalize_std):
    rewards = np.random.default_rng(0).normal(size=(5, 6))
    with jax.enable_x64(True):
        ours = group_advantages(jnp.asarray(rewards), normalize_std=normalize_std, std_epsilon=1e-4)
    theirs = [reference.group_advantages(list(group), normalize_std, 1e-4) for group in rewards]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def test_literal_values():
    # The mean is 0.25 and the population std sqrt(3)/4.
    ours = group_advantages(jnp.array([1.0, 0.0, 0.0, 0.0]), normalize_std=True, std_epsilon=1e-9)
    np.testing.assert_allclose(ours, [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)], rtol=1e-6)


def test_equal_rewards_give_exact_zeros():
    # 0.1 is no float: its mean over seven copies rounds, and std_epsilon would blow the rest up.
    rewards = jnp.full((3, 7), 0.1, jnp.float32)
    assert not np.any(group_advantages(rewards, normalize_std=True, std_epsilon=1e-12))


def test_constant_under_differentiation():
    rewards = jnp.array([[1.0, 0.0, 0.3], [0.0, 0.0, 0.0]])
    gradient = jax.grad(
        lambda r: jnp.sum(group_advantages(r, normalize_std=True, std_epsilon=1e-4) ** 2)
    )(rewards)
    assert not np.any(gradient)


@pytest.mark.parametrize("normalize_std", [True, False])
def test_a_weighted_baseline_is_the_weighted_mean(normalize_std):
    rng = np.random.default_rng(1)
    rewards, weights = rng.normal(size=(4, 5)), rng.exponential(size=(4, 5)) ** 3
    rewards[1], weights[2], weights[3, 1:] = 0.1, 0.0, 0.0
    settings = dict(normalize_std=normalize_std, std_epsilon=1e-4)
    with jax.enable_x64(True):
        ours = group_advantages(jnp.asarray(rewards), **settings, baseline_weights_NxG=weights)
        equal = group_advantages(
            jnp.asarray(rewards), **settings, baseline_weights_NxG=jnp.full((4, 5), 0.3)
        )
        mean = group_advantages(jnp.asarray(rewards), **settings)
    ours, equal, mean = (np.asarray(x) for x in (ours, equal, mean))
    for n in (0, 1, 3):
        baseline = np.dot(weights[n], rewards[n]) / np.sum(weights[n])
        divisor = np.std(rewards[n]) + 1e-4 if normalize_std else 1.0
        expected = (rewards[n] - baseline) / divisor
        # 0.1 is no float, and its rounding is divided by std_epsilon.
        np.testing.assert_allclose(ours[n], expected, rtol=1e-12, atol=1e-11)
    assert (ours[1] == 0).all() and abs(ours[3, 0]) < 1e-15  # one response has all the weight
    np.testing.assert_array_equal(ours[2], mean[2])  # weights of 0: the mean
    np.testing.assert_allclose(equal, mean, rtol=1e-12, atol=1e-15)


def test_weights_of_an_optimal_baseline():
    policy, behavior = np.log([[0.5, 0.5], [0.2, 0.9]]), np.log([[0.25, 0.5], [0.4, 0.1]])
    mask = np.array([[True, True], [True, False]])
    behavior[1, 1] = np.nan  # masked
    norms = jnp.array([3.0, 5.0])
    weights = optimal_baseline_weights(policy, behavior, mask, norms)
    np.testing.assert_allclose(weights, [2.0**2 * 3, 0.5**2 * 5], rtol=1e-6)
    # NaN in a response, or a norm that overflowed, leaves no advantage of its group finite.
    broken = optimal_baseline_weights(policy, behavior, np.ones((2, 2), bool), norms)
    rewards = jnp.array([1.0, 0.0])
    for weights in (broken, jnp.array([jnp.inf, 1.0])):
        advantages = group_advantages(
            rewards, normalize_std=False, std_epsilon=1e-4, baseline_weights_NxG=weights
        )
        assert np.isnan(advantages).all()
    slope = jax.grad(lambda p: jnp.sum(optimal_baseline_weights(p, behavior, mask, norms)))
    assert not np.any(slope(jnp.asarray(policy)))
