"""Tests expected advantages against an enumeration of the other group members."""

import itertools
import math

import numpy as np
import pytest

from staleness_grpo.bias.group_statistics import expected_advantages, level_counts
from staleness_grpo.objective.surrogate import SurrogateConfig
from tests.helpers import reference


@pytest.mark.parametrize(("total", "num_levels"), [(3, 2), (4, 3), (2, 4)])
def test_level_counts_are_all_compositions(total, num_levels):
    counts, coefficients = level_counts(total, num_levels)
    assert (
        len(counts)
        == math.comb(total + num_levels - 1, num_levels - 1)
        == len({tuple(k) for k in counts.tolist()})
    )
    assert np.all(counts.sum(axis=1) == total)
    assert coefficients.sum() == num_levels**total


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("levels", [(0.0, 1.0), (-0.5, 0.1, 2.0)])
def test_against_every_rest_of_the_group(levels, normalize_std):
    objective = SurrogateConfig(normalize_std=normalize_std, std_epsilon=1e-2)
    group_size = 4
    probs = np.random.default_rng(0).dirichlet(np.ones(len(levels)), size=2)
    positive, negative = expected_advantages(probs, np.array(levels), group_size, objective)
    for n, level in itertools.product(range(2), range(len(levels))):
        expected = np.zeros(2)
        for others in itertools.product(range(len(levels)), repeat=group_size - 1):
            weight = math.prod(probs[n, m] for m in others)
            rewards = [levels[level], *(levels[m] for m in others)]
            advantage = reference.group_advantages(rewards, normalize_std, objective.std_epsilon)[0]
            expected += weight * np.array([max(advantage, 0.0), max(-advantage, 0.0)])
        np.testing.assert_allclose(
            [positive[n, level], negative[n, level]], expected, rtol=1e-13, atol=1e-16
        )


def test_pair_by_hand():
    """With G = 2, rewards 0 and 1 and no std, a success has A = 1/2 if the other fails, else 0."""
    objective = SurrogateConfig(normalize_std=False)
    positive, negative = expected_advantages(
        np.array([[0.75, 0.25]]), np.array([0.0, 1.0]), 2, objective
    )
    np.testing.assert_allclose(positive, [[0.0, 0.375]], rtol=1e-15)
    np.testing.assert_allclose(negative, [[0.125, 0.0]], rtol=1e-15)


def test_equal_rewards_have_advantage_exactly_zero():
    """The mean of three rewards of 0.7 is not 0.7 in floating point.

    Over a tiny std that difference would be of order 1.
    """
    objective = SurrogateConfig(std_epsilon=1e-30)
    positive, negative = expected_advantages(
        np.array([[1.0, 0.0]]), np.array([0.7, 0.9]), 3, objective
    )
    assert positive[0, 0] == 0.0 and negative[0, 0] == 0.0
