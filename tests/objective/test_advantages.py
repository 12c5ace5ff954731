"""Group advantages have the right values, exact zeros and no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.objective.advantages import group_advantages
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
