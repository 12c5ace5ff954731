"""Corrections in the limits where another correction or an analytic value is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.objective.corrections.masked import binary_kl
from tests.helpers import correction_reference
from tests.helpers.corrections import CLIP, ascent, random_batch, surrogate_config


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_token_tis_tends_to_token_is_as_the_cap_grows():
    policy, behavior, _, advantages, mask = random_batch()
    arrays, config = (policy, behavior, policy, advantages, mask), surrogate_config("token_is")
    _, limit = ascent("token_is", arrays, config, {})
    distances = [
        np.abs(ascent("token_tis", arrays, config, {"cap": cap})[1] - limit).max()
        for cap in (1.0, 1.5, 2.0, 1e4)
    ]
    assert distances[0] > distances[1] > distances[2] > 0 and distances[3] < 1e-15


def test_gspo_equals_grpo_clip_for_single_tokens():
    arrays = random_batch(num_responses=40, length=1)
    _, gradient = ascent("gspo", arrays, surrogate_config("gspo"), CLIP)
    _, plain = ascent("grpo_clip", arrays, surrogate_config("grpo_clip"), {})
    assert np.count_nonzero(plain) not in (0, plain.size)
    np.testing.assert_allclose(gradient, plain, rtol=1e-13)


def slopes(name, overrides, arrays):
    """Returns dL/dlog pi with the length normalization 'constant'."""
    config = surrogate_config(name, length_normalization="constant")
    return ascent(name, arrays, config, overrides)[1]


def on_one_token(log_ratio, advantage, behavior_logprob=-1.0):
    """Returns a batch of one token. The proximal policy is the policy."""
    behavior = np.array([[behavior_logprob]])
    return (
        behavior + log_ratio,
        behavior,
        behavior + log_ratio,
        np.array([advantage]),
        np.array([[True]]),
    )


def test_dual_clip_is_grpo_clip_but_for_raised_tokens_with_negative_advantages():
    arrays, cap = random_batch(), 1.4
    policy, behavior, _, advantages, mask = arrays
    plain, dual = slopes("grpo_clip", {}, arrays), slopes("dual_clip", {"cap": cap}, arrays)
    raised = mask & (advantages[:, None] < 0) & (np.exp(policy - behavior) > cap)
    assert raised.any() and np.all(plain[raised]) and not np.any(dual[raised])
    np.testing.assert_array_equal(dual[~raised], plain[~raised])


def test_sapo_tends_to_token_is_as_the_temperature_falls():
    arrays = random_batch()
    limit = slopes("token_is", {}, arrays)
    errors = [
        np.abs(slopes("sapo", {"tau_positive": tau, "tau_negative": tau}, arrays) - limit).max()
        for tau in (1.0, 0.1, 0.01)
    ]
    # The weight is rho / cosh(tau (rho - 1) / 2)^2, so the error falls with the square of tau.
    assert errors[0] > 0
    np.testing.assert_allclose([errors[1] / errors[2]], 100, rtol=0.05)


@pytest.mark.parametrize(("advantage", "tau"), [(2.0, 1.0), (-2.0, 1.05)])
def test_sapo_has_the_weight_of_its_docstring(advantage, tau):
    for rho in (0.2, 0.9, 1.0, 1.5, 4.0):
        weight = rho / np.cosh(tau * (rho - 1) / 2) ** 2
        slope = slopes("sapo", {}, on_one_token(np.log(rho), advantage))
        np.testing.assert_allclose(slope, advantage * weight, rtol=1e-12)


@pytest.mark.parametrize(("advantage", "k", "decay"), [(1.0, 2.0, 3.0), (-1.0, 3.0, 2.0)])
def test_vespo_has_the_slope_and_the_maximum_of_its_docstring(advantage, k, decay):
    def weight(ratio):
        return slopes("vespo", {}, on_one_token(np.log(ratio), advantage)).item() * advantage

    step = 1e-5  # the error of a central difference is of order 1e-10
    assert weight(1.0) == 1.0
    slope = (weight(1 + step) - weight(1 - step)) / (2 * step)
    np.testing.assert_allclose(slope, k - decay, atol=1e-8)
    largest = np.exp(decay - k) * (k / decay) ** k
    np.testing.assert_allclose(weight(k / decay), largest, rtol=1e-12)
    assert weight(k / decay * 0.99) < largest > weight(k / decay * 1.01)
    assert weight(np.exp(30.0)) == 0


def test_vespo_with_exponent_1_and_no_decay_is_sequence_is():
    arrays = random_batch()
    identity = {"exponent_positive": 1.0, "exponent_negative": 1.0}
    identity |= {"decay_positive": 0.0, "decay_negative": 0.0}
    sequence_is = slopes("sequence_is", {}, arrays)
    np.testing.assert_allclose(slopes("vespo", identity, arrays), sequence_is, rtol=1e-12)


def test_dro_is_none_without_its_penalty_and_pulls_to_the_behavior_policy_with_it():
    policy, behavior, proximal, advantages, mask = arrays = random_batch()
    np.testing.assert_array_equal(slopes("dro", {"beta": 0.0}, arrays), slopes("none", {}, arrays))
    pull = slopes("dro", {"beta": 0.3}, (policy, behavior, proximal, 0 * advantages, mask))
    expected = np.where(mask, -0.3 * (policy - behavior), 0.0) / mask.size
    np.testing.assert_allclose(pull, expected, rtol=1e-12)


def test_dppo_kl_without_threshold_and_cap_is_token_is():
    policy, behavior, _, advantages, mask = random_batch()
    arrays = policy, behavior, policy, advantages, mask
    wide = {"kl_threshold": 1e9, "cap": 1e9}
    limit = slopes("token_is", {}, arrays)
    np.testing.assert_allclose(slopes("dppo_kl", wide, arrays), limit, rtol=1e-12)
    # With the threshold 0 every outward token is dropped.
    outward = mask & (advantages[:, None] * (policy - behavior) > 0)
    kept = slopes("dppo_kl", {"kl_threshold": 0.0, "cap": 1e9}, arrays)
    np.testing.assert_allclose(kept, np.where(outward, 0.0, limit), rtol=1e-12)


def test_kpop_without_threshold_is_decoupled_ppo():
    arrays = random_batch()
    decoupled = slopes("decoupled_ppo", {}, arrays)
    np.testing.assert_array_equal(slopes("kpop", {"kl_threshold": 1e9}, arrays), decoupled)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize(
    ("behavior", "policy", "kept"),
    [
        (0.5, 0.7, True),  # both divergences are 0.09 and 0.08
        (0.5, 0.75, False),
        (0.75, 0.5, False),
        (0.001, 0.01, True),  # a ratio of 10
        (0.9999, 0.99, True),
        (1e-6, 0.04, False),  # 0.04 from behavior to policy, but 0.39 from policy to behavior
        (0.04, 1e-6, False),
    ],
)
def test_kpop_drops_a_token_by_the_larger_divergence(behavior, policy, kept, advantage):
    arrays = on_one_token(np.log(policy / behavior), advantage, np.log(behavior))
    assert (slopes("kpop", {}, arrays) != 0).item() == kept


def test_binary_kl_is_a_divergence_and_finite_at_certainty():
    logprobs = np.log([1e-30, 1e-3, 0.3, 0.6, 0.999])
    p, q = (x.ravel() for x in np.meshgrid(logprobs, logprobs))
    divergence = jax.jit(binary_kl)
    values = np.asarray(divergence(p, q))
    reference = [correction_reference.binary_kl(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(values, reference, rtol=1e-12, atol=1e-14)
    assert np.all(values[p == q] == 0) and np.all(values[p != q] > 0)
    for dtype in (jnp.float32, jnp.float64):
        certain = np.zeros(3, dtype)
        others = np.array([0.0, -1e-9, -800.0], dtype)
        for pair in ((certain, others), (others, certain)):
            assert np.isfinite(divergence(*pair)).all()
        assert divergence(certain, certain)[0] == 0
    unknown = np.array([np.nan, -1.0])
    assert np.isnan(divergence(unknown, unknown[::-1])).all()
