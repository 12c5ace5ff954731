"""Tests draws from a posterior against distributions whose moments are known."""

import numpy as np
import pytest

from staleness_grpo.scaling.posterior import posterior


def test_a_normal_likelihood_gives_the_normal_posterior():
    """Precisions add up, and means are weighted by them."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(3, 3))
    precision, center = root @ root.T + np.eye(3), np.array([1.0, -2.0, 0.5])
    mean, spread = np.array([0.0, 0.0, 1.0]), np.array([2.0, 1.0, 0.5])

    def log_likelihood(constants):
        moved = constants - center
        return -0.5 * np.einsum("mi,ij,mj->m", moved, precision, moved)

    found = posterior(log_likelihood, mean, spread)
    whole = precision + np.diag(spread**-2.0)
    expected = np.linalg.solve(whole, precision @ center + mean / spread**2)
    deviations = np.sqrt(np.diag(np.linalg.inv(whole)))
    np.testing.assert_allclose(found.mode, expected, atol=1e-3)
    error = (found.constants.mean(axis=0) - expected) / deviations
    np.testing.assert_allclose(error, 0, atol=0.08)
    covariance = np.cov(found.constants.T)
    np.testing.assert_allclose(
        covariance / np.outer(deviations, deviations),
        np.linalg.inv(whole) / np.outer(deviations, deviations),
        atol=0.1,
    )
    assert found.effective > 1000


def test_without_data_the_prior_is_left():
    mean, spread = np.array([3.0, -1.0]), np.array([0.5, 2.0])
    found = posterior(lambda constants: np.zeros(len(constants)), mean, spread)
    error = (found.constants.mean(axis=0) - mean) / spread
    np.testing.assert_allclose(error, 0, atol=0.08)
    np.testing.assert_allclose(found.constants.std(axis=0), spread, rtol=0.08)


def test_a_bound_from_one_side_gives_a_truncated_normal():
    """Data that only say x > 1: mean and deviation of a truncated standard normal."""
    found = posterior(
        lambda constants: np.where(constants[:, 0] > 1, 0.0, -1e6), np.zeros(1), np.ones(1)
    )
    density, tail = np.exp(-0.5) / np.sqrt(2 * np.pi), 0.158655
    mean = density / tail
    assert found.constants.mean() == pytest.approx(mean, abs=0.03)
    assert found.constants.std() == pytest.approx(np.sqrt(1 + mean - mean**2), abs=0.03)


def test_the_interval_has_its_share_of_the_draws():
    found = posterior(lambda constants: np.zeros(len(constants)), np.zeros(1), np.ones(1))
    median, low, high = found.interval(found.constants[:, 0], 0.9)
    assert np.mean((found.constants[:, 0] >= low) & (found.constants[:, 0] <= high)) == (
        pytest.approx(0.9, abs=0.01)
    )
    assert low < median < high
