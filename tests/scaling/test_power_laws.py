"""Power-law fits recover what they were given."""

import numpy as np
import pytest

from staleness_grpo.scaling.power_laws import fit_power_law


def test_exact_power_laws_are_recovered():
    x = np.tile([1.0, 2.0, 4.0, 8.0], 2)
    group = np.repeat([3, 7], 4)
    y = np.where(group == 3, 5.0 * x**1.5, 0.1 * x**0.5)
    law = fit_power_law(x, y, group)
    np.testing.assert_allclose(law.slopes, [1.5, 0.5], rtol=1e-12)
    np.testing.assert_allclose(np.exp(law.log_constants), [5.0, 0.1], rtol=1e-12)
    np.testing.assert_allclose(law.predict(x, group), y, rtol=1e-12)
    assert law.r_squared == pytest.approx(1.0) and law.num_points == 8


def test_r_squared_counts_no_variance_between_groups():
    """Checks two groups far apart, each pure noise: their constants explain nothing that counts."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=200))
    group = np.repeat([0, 1], 100)
    y = np.exp(rng.normal(size=200) + 10 * group)
    assert fit_power_law(x, y, group).r_squared < 0.1


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="group 1 has 2 points"):
        fit_power_law(np.arange(1.0, 6.0), np.ones(5), np.array([0, 0, 0, 1, 1]))
