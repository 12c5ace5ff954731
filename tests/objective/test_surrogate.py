"""The surrogate agrees with NumPy: clip edges by sign, masks, missing gradients, diagnostics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from staleness_grpo.objective.surrogate import (
    LENGTH_NORMALIZATIONS,
    SurrogateConfig,
    corrected_surrogate,
    grpo_surrogate,
)
from tests.helpers import reference

ASYMMETRIC = SurrogateConfig(clip_low=0.1, clip_high=0.3)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_batch(seed=0, num_responses=12, length=7):
    rng = np.random.default_rng(seed)
    behavior = -rng.exponential(size=(num_responses, length))
    policy = behavior + rng.normal(scale=0.4, size=behavior.shape)
    mask = np.arange(length) < rng.integers(1, length + 1, size=(num_responses, 1))
    return policy, behavior, rng.normal(size=num_responses), mask


value_and_gradient = jax.jit(jax.value_and_grad(grpo_surrogate, has_aux=True), static_argnums=4)


def loss_and_gradient(policy, behavior, advantages, mask, config):
    (loss, diagnostics), gradient = value_and_gradient(policy, behavior, advantages, mask, config)
    return loss, gradient, diagnostics


@pytest.mark.parametrize("length_normalization", LENGTH_NORMALIZATIONS)
def test_matches_reference(x64, length_normalization):
    policy, behavior, advantages, mask = random_batch()
    config = SurrogateConfig(clip_low=0.1, clip_high=0.3, length_normalization=length_normalization)
    loss, gradient, _ = loss_and_gradient(policy, behavior, advantages, mask, config)
    value, slope = reference.surrogate(
        policy, behavior, advantages, mask, 0.1, 0.3, length_normalization
    )
    np.testing.assert_allclose(loss, -value, rtol=1e-12)
    np.testing.assert_allclose(gradient, -slope, rtol=1e-12, atol=1e-15)
    # Some tokens are clipped and some are not.
    assert np.count_nonzero(slope) not in (0, mask.sum())


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "active"),
    [
        (np.log(1.29), 1.0, True),
        (np.log(1.31), 1.0, False),  # above 1 + clip_high with A > 0: cut
        (np.log(1.31), -1.0, True),
        (np.log(0.91), -1.0, True),
        (np.log(0.89), -1.0, False),  # below 1 - clip_low with A < 0: cut
        (np.log(0.89), 1.0, True),
    ],
)
def test_the_clip_cuts_the_gradient_exactly(log_ratio, advantage, active):
    loss, gradient, diagnostics = loss_and_gradient(
        np.array([[-1.0 + log_ratio]], np.float32),
        np.array([[-1.0]], np.float32),
        np.array([advantage], np.float32),
        np.array([[True]]),
        ASYMMETRIC,
    )
    expected = -advantage * np.exp(log_ratio) if active else 0.0
    np.testing.assert_allclose(gradient, [[expected]], rtol=1e-5)
    assert diagnostics["clip_fraction"] == (0.0 if active else 1.0)
    assert diagnostics["clip_fraction_positive"] == (1.0 if not active and advantage > 0 else 0.0)
    assert diagnostics["clip_fraction_negative"] == (1.0 if not active and advantage < 0 else 0.0)


def test_gradient_by_finite_differences(x64):
    policy, behavior, advantages, mask = random_batch(seed=3)

    @jax.jit
    def loss_fn(policy_logprobs):
        return grpo_surrogate(policy_logprobs, behavior, advantages, mask, ASYMMETRIC)[0]

    # Central differences are good to eps^2. No ratio of this batch lies within eps of a clip edge.
    check_grads(loss_fn, (jnp.asarray(policy),), order=1, modes=("rev",), eps=1e-6, rtol=1e-6)


def test_behavior_side_has_no_gradient():
    policy, behavior, advantages, mask = (jnp.asarray(x) for x in random_batch())

    def gradient_of(loss):
        return jax.jit(jax.grad(loss))(behavior)

    assert not np.any(
        gradient_of(lambda b: grpo_surrogate(policy, b, advantages, mask, ASYMMETRIC)[0])
    )
    # On policy both sides are one function of theta. Without the stop_gradient the ratio would be
    # constant.
    assert np.any(gradient_of(lambda p: grpo_surrogate(p, p, advantages, mask, ASYMMETRIC)[0]))


def test_advantages_have_no_gradient():
    policy, behavior, advantages, mask = (jnp.asarray(x) for x in random_batch())
    assert not np.any(
        jax.grad(lambda a: grpo_surrogate(policy, behavior, a, mask, ASYMMETRIC)[0])(advantages)
    )


@pytest.mark.parametrize("length_normalization", LENGTH_NORMALIZATIONS)
def test_nothing_leaks_from_masked_places(length_normalization):
    policy, behavior, advantages, mask = random_batch()
    config = SurrogateConfig(length_normalization=length_normalization)
    clean = loss_and_gradient(
        np.where(mask, policy, 0), np.where(mask, behavior, 0), advantages, mask, config
    )
    policy, behavior = np.where(mask, policy, np.nan), np.where(mask, behavior, np.nan)
    dirty = loss_and_gradient(policy, behavior, advantages, mask, config)
    chex.assert_trees_all_equal(clean, dirty)
    assert not np.any(dirty[1][~mask])


def test_masked_equals_sliced():
    policy, behavior, advantages, _ = random_batch()
    mask = np.broadcast_to(np.arange(7) < 4, policy.shape)
    for normalization in ("response", "tokens"):  # 'constant' divides by the padded length
        config = SurrogateConfig(length_normalization=normalization)
        masked, _, _ = loss_and_gradient(policy, behavior, advantages, mask, config)
        sliced, _, _ = loss_and_gradient(
            policy[:, :4], behavior[:, :4], advantages, mask[:, :4], config
        )
        np.testing.assert_allclose(masked, sliced, rtol=1e-6)


def test_empty_response_weighs_nothing():
    policy, behavior, advantages, mask = random_batch()
    mask[3] = False
    for normalization in LENGTH_NORMALIZATIONS:
        loss, gradient, _ = loss_and_gradient(
            policy, behavior, advantages, mask, SurrogateConfig(length_normalization=normalization)
        )
        assert np.isfinite(loss) and not np.any(gradient[3])
    loss, gradient, diagnostics = loss_and_gradient(
        policy, behavior, advantages, np.zeros_like(mask), ASYMMETRIC
    )
    assert loss == 0 and not np.any(gradient)
    assert diagnostics["ess"] == 1 and all(
        value == 0 for name, value in diagnostics.items() if name != "ess"
    )


def test_missing_behavior_logprobs_is_an_error():
    policy, _, advantages, mask = random_batch()
    with pytest.raises(ValueError, match="never assumes that rollouts are on-policy"):
        # None is what is refused.
        grpo_surrogate(policy, None, advantages, mask, ASYMMETRIC)  # type: ignore[arg-type]


def test_shapes_are_checked():
    policy, behavior, advantages, mask = random_batch()
    with pytest.raises(AssertionError):
        grpo_surrogate(policy, behavior[:, :1], advantages, mask, ASYMMETRIC)
    with pytest.raises(AssertionError):
        grpo_surrogate(policy, behavior, advantages[:, None], mask, ASYMMETRIC)


@pytest.mark.parametrize(
    "objective",
    [
        lambda batch: jnp.mean(batch.policy_logprobs * batch.advantages),
        lambda batch: jnp.sum(batch.policy_logprobs * batch.advantages, axis=-1, keepdims=True),
    ],
)
def test_an_objective_has_a_value_for_each_token(objective):
    policy, behavior, advantages, mask = random_batch()
    with pytest.raises(AssertionError, match="shape"):
        corrected_surrogate(policy, behavior, policy, advantages, mask, "response", objective)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(clip_low=0.0),
        dict(clip_high=-1.0),
        dict(length_normalization="mean"),
        dict(std_epsilon=0.0),
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SurrogateConfig(**wrong)


def test_diagnostics_against_numpy(x64):
    policy, behavior, advantages, mask = random_batch(seed=5)
    _, _, diagnostics = loss_and_gradient(policy, behavior, advantages, mask, ASYMMETRIC)
    log_ratio = (policy - behavior)[mask]
    ratio = np.exp(log_ratio)
    sign = np.broadcast_to(np.sign(advantages)[:, None], mask.shape)[mask]
    cut = ((sign > 0) & (ratio > 1.3)) | ((sign < 0) & (ratio < 0.9))
    expected = {
        "ratio_mean": ratio.mean(),
        "ratio_q01": np.quantile(ratio, 0.01, method="inverted_cdf"),
        "ratio_q50": np.quantile(ratio, 0.5, method="inverted_cdf"),
        "ratio_q99": np.quantile(ratio, 0.99, method="inverted_cdf"),
        "ratio_max": ratio.max(),
        "clip_fraction": cut.mean(),
        "clip_fraction_positive": cut[sign > 0].mean(),
        "clip_fraction_negative": cut[sign < 0].mean(),
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "ess": ratio.sum() ** 2 / (ratio.size * (ratio**2).sum()),
        "log_ratio_second_moment": (log_ratio**2).mean(),
    }
    chex.assert_trees_all_close(diagnostics, expected, rtol=1e-10)


def test_diagnostics_come_before_the_clamp():
    policy = np.array([[50.0, 0.0, 0.0, 0.0]], np.float32)
    loss, gradient, diagnostics = loss_and_gradient(
        policy,
        np.zeros((1, 4), np.float32),
        np.array([-1.0], np.float32),
        np.ones((1, 4), bool),
        SurrogateConfig(),
    )
    np.testing.assert_allclose(diagnostics["log_ratio_second_moment"], 50.0**2 / 4)
    np.testing.assert_allclose(diagnostics["ratio_max"], np.exp(np.float32(50.0)), rtol=1e-5)
    np.testing.assert_allclose(diagnostics["ess"], 0.25, rtol=1e-5)  # (e^50)^2 does not fit float32
    # The clamp holds in the loss.
    np.testing.assert_allclose(loss, (np.exp(20.0) + 3) / 4, rtol=1e-5)
    assert gradient[0, 0] == 0
