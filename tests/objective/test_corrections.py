"""Every correction agrees with the NumPy reference, at its edges and in the limits of theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import corrected_surrogate, token_weights
from staleness_grpo.objective.tokens import TokenBatch
from staleness_grpo.training.drift import distance
from staleness_grpo.training.loop import train
from tests.helpers.corrections import ascent, expected, random_batch, surrogate_config
from tests.helpers.tiny import tiny_config

# Parameters at which this file's batches meet every branch, where the defaults do not.
CHOSEN = {
    "gspo": {"clip_low": 0.1, "clip_high": 0.2},
    "cispo": {"clip_low": 0.2, "clip_high": 0.4},
    "token_tis": {"cap": 1.3},
    "sequence_tis": {"cap": 1.3},
    "geometric_tis": {"cap": 1.1},
    "opob": {"cap": 1.3},
    "aipo": {"cap": 1.3},
    "token_mis": {"ratio_low": 0.8, "ratio_high": 1.4},
    "sequence_mis": {"ratio_low": 0.6, "ratio_high": 2.0},
    "negative_mask": {"delta": 0.1},
    "mu_grpo": {"clip_low": 0.5, "clip_high": 0.8, "veto_low": 0.6, "veto_high": 1.6},
    "r1_reward_stable_reinforce": {"ratio_low": 0.5, "ratio_high": 1.25, "sigmas": 1.1},
    "sat": {"quantile": 0.6},
    "dppo_tv": {"probability_change": 0.05},
    "dual_clip": {"cap": 1.4},
    "dppo_kl": {"kl_threshold": 0.02, "cap": 1.3},
    "kpop": {"kl_threshold": 0.03},
    "m2po_authors": {"clip_low": 0.05, "clip_high": 0.05},
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def assert_matches(name, arrays, overrides):
    config = surrogate_config(name)
    value, gradient = ascent(name, arrays, config, overrides)
    expected_value, expected_gradient = expected(name, arrays, config, overrides)
    # 1e-12 is some hundred float64 roundings. It is relative to the largest entry, because values
    # of ratios e^20 cancel.
    scale = max(np.max(np.abs(expected_gradient)), 1e-3)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12, atol=1e-12 * max(scale, 1.0))
    return gradient


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_matches_the_published_formula(name):
    """Checks masked NaNs, an empty response and single tokens in one program.

    Then come log-ratios of +-50, and a batch in which everything is masked.
    """
    overrides = CHOSEN.get(name, {})
    policy, behavior, proximal, advantages, mask = random_batch()
    dirty = [np.where(mask, x, np.nan) for x in (policy, behavior, proximal)]
    gradient = assert_matches(name, (*dirty, advantages, mask), overrides)
    assert np.any(gradient[mask]) and not np.any(gradient[~mask])

    extreme = policy.copy()
    extreme[mask.sum(axis=1) == 1, 0] = behavior[mask.sum(axis=1) == 1, 0] + 50.0
    extreme[4, :4] = behavior[4, :4] + [50.0, -50.0, 0.01, -50.0]
    assert_matches(name, (extreme, behavior, proximal, advantages, mask), overrides)
    # Now the proximal policy is theta.
    assert_matches(name, (extreme, behavior, extreme, -advantages, mask), overrides)

    value, gradient = ascent(
        name, (*dirty, advantages, np.zeros_like(mask)), surrogate_config(name), overrides
    )
    assert value == 0 and not np.any(gradient)


UNBOUNDED = {"none", "token_is", "sequence_is", "decoupled_ppo", "dro"}
BOUND_A_WEIGHT = {
    "cispo",
    "opob",
    "aipo",
    "topr",
    "topr_token",
    "topr_geometric",
    "token_tis",
    "sequence_tis",
    "geometric_tis",
    "sapo",
    "vespo",
}


@pytest.mark.parametrize("name", sorted(set(registry.CORRECTIONS) - UNBOUNDED))
def test_the_batch_above_meets_every_branch(name):
    """Checks that a cut keeps some tokens and cuts some, and that a bound on weights bounds one."""
    arrays, config = random_batch(), surrogate_config(name)
    _, slope = expected(
        name, arrays, config, CHOSEN.get(name, {}) | ({"penalty": 0.0} if name == "dppo_tv" else {})
    )
    if name in BOUND_A_WEIGHT:
        for other in UNBOUNDED:
            assert np.abs(slope - expected(other, arrays, config, {})[1]).max() > 1e-3, other
    else:
        cut = slope[arrays[-1]] == 0
        assert 0 < np.mean(cut) < 1


@pytest.mark.parametrize(
    ("name", "overrides", "log_ratio", "advantage", "kept"),
    [
        ("grpo_clip", {}, np.log(1.31), 1.0, False),
        ("grpo_clip", {}, np.log(1.31), -1.0, True),
        ("grpo_clip", {}, np.log(0.84), -1.0, False),
        ("grpo_clip", {}, np.log(0.84), 1.0, True),
        ("gspo", {}, 5e-4, 1.0, False),
        ("gspo", {}, 3.5e-4, 1.0, True),
        ("gspo", {}, -3.5e-4, -1.0, False),
        ("gspo", {}, 5e-4, -1.0, True),
        ("cispo", {}, 3.0, 1.0, True),  # CISPO cuts no gradient
        ("negative_mask", {}, -0.51, -1.0, False),
        ("negative_mask", {}, -0.51, 1.0, True),
        ("token_mis", {}, np.log(5.1), 1.0, False),
        ("token_mis", {}, np.log(0.49), -1.0, False),
        ("topr", {}, 30.0, 1.0, True),
        ("dppo_tv", {"penalty": 0.0}, 1.0, 1.0, False),
        ("dppo_tv", {"penalty": 0.0}, 1.0, -1.0, True),
        ("dppo_tv", {"penalty": 0.0}, -1.0, -1.0, False),
        ("m2po_authors", {}, np.log(1.52), 1.0, False),
        # Over the budget, but the bound is never tighter than 1.5.
        ("m2po_authors", {}, np.log(1.48), 1.0, True),
        ("m2po_authors", {}, np.log(0.69), -1.0, False),
        ("m2po_authors", {}, np.log(1.52), -1.0, True),
        ("dual_clip", {}, np.log(1.31), 1.0, False),
        ("dual_clip", {}, np.log(2.99), -1.0, True),
        ("dual_clip", {}, np.log(3.01), -1.0, False),
        ("dual_clip", {}, np.log(0.84), -1.0, False),
        ("dual_clip", {}, np.log(0.84), 1.0, True),
        ("sapo", {}, 2.0, 1.0, True),  # faded, but not cut
        ("vespo", {}, -3.0, 1.0, True),
        # The binary divergence of 0.368 from 0.546 is 0.064, and of 0.368 from 0.223 it is 0.054.
        ("dppo_kl", {}, 0.395, 1.0, False),
        ("dppo_kl", {}, 0.395, -1.0, True),
        ("dppo_kl", {}, -0.5, -1.0, False),
        ("dppo_kl", {}, -0.5, 1.0, True),
        ("dppo_kl", {"kl_threshold": 0.07}, 0.395, 1.0, True),
        ("m2po_areal", {}, 0.21, 1.0, False),
        ("m2po_areal", {}, 0.19, 1.0, True),
    ],
)
def test_clip_edges_by_sign_of_the_advantage(name, overrides, log_ratio, advantage, kept):
    behavior = np.array([[-1.0]])
    arrays = (
        behavior + log_ratio,
        behavior,
        behavior + log_ratio,
        np.array([advantage]),
        np.array([[True]]),
    )
    _, gradient = ascent(name, arrays, surrogate_config(name), overrides)
    assert (gradient[0, 0] != 0) == kept
    assert gradient[0, 0] * advantage >= 0


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_a_response_reads_the_others_only_where_the_registry_says_so(name):
    """Microbatches take slopes one by one, which must be the gradient of the whole batch."""
    config, reads_others = surrogate_config(name), False
    for drift in (0.08, 0.15, 0.25):  # where clip ranges, budgets and quantiles begin to bind
        arrays = random_batch(num_responses=70, drift=drift)
        slopes = ascent(name, arrays, config, {})[1]
        # The second half of the responses moves far away, or close to the behavior policy.
        for shift in (1.0, -1.0, 0.95 * (arrays[1] - arrays[0])):
            policy, proximal = arrays[0].copy(), arrays[2].copy()
            policy[35:] += np.broadcast_to(shift, policy.shape)[35:]
            proximal[35:] += np.broadcast_to(shift, policy.shape)[35:]
            moved = ascent(name, (policy, arrays[1], proximal, *arrays[3:]), config, {})[1]
            reads_others |= bool(np.any(slopes[:35] != moved[:35]))
    assert reads_others == registry.CORRECTIONS[name].reads_other_responses


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_equals_plain_grpo_on_policy(name):
    """Checks that every definition reduces to A grad log pi at lag 0."""
    _, behavior, _, _, mask = random_batch()
    # There are no outliers, so a filter on their size keeps all.
    advantages = np.resize([1.0, -1.0], len(behavior))
    config = surrogate_config(name)
    _, gradient = ascent(
        name, (behavior, behavior, behavior, advantages, mask), config, CHOSEN.get(name, {})
    )
    plain = token_weights(mask, config.length_normalization) * advantages[:, None]
    np.testing.assert_allclose(gradient, plain, rtol=1e-12, atol=1e-15)


def test_clip_fraction_counts_what_the_correction_cuts():
    arrays, config = random_batch(), surrogate_config("negative_mask")
    token_objective = registry.bind("negative_mask", config, CHOSEN["negative_mask"])
    normalization = config.length_normalization
    surrogate = jax.jit(
        lambda *arrays: corrected_surrogate(*arrays, normalization, token_objective)
    )
    _, diagnostics = surrogate(*arrays)
    _, slope = expected("negative_mask", arrays, config, CHOSEN["negative_mask"])
    cut, sign = slope[arrays[-1]] == 0, np.broadcast_to(arrays[3][:, None], slope.shape)[arrays[-1]]
    np.testing.assert_allclose(diagnostics["clip_fraction"], cut.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        diagnostics["clip_fraction_positive"], cut[sign > 0].mean(), rtol=1e-12
    )
    np.testing.assert_allclose(
        diagnostics["clip_fraction_negative"], cut[sign < 0].mean(), rtol=1e-12
    )


def test_response_statistics_leave_out_masked_places():
    policy, behavior, proximal, advantages, mask = (jnp.asarray(x) for x in random_batch())
    policy, behavior, proximal = (jnp.where(mask, x, 0.0) for x in (policy, behavior, proximal))
    weights = jnp.ones_like(advantages[:, None])
    tokens = TokenBatch(policy, behavior, proximal, advantages[:, None], mask, weights)
    lengths = np.asarray(mask).sum(axis=1, keepdims=True)
    ones = jnp.ones_like(policy)  # not 0 where masked, as log-ratios are
    np.testing.assert_array_equal(tokens.response_sum(ones), lengths)
    np.testing.assert_array_equal(tokens.response_mean(ones), np.minimum(lengths, 1))


def test_a_correction_of_ones_own_trains(monkeypatch):
    def square_root_is(tokens, *, cap=2.0):
        """Returns sg(min(sqrt(rho), cap)) A log pi_theta."""
        weight = jax.lax.stop_gradient(jnp.minimum(jnp.sqrt(tokens.ratio()), cap))
        return weight * tokens.advantages * tokens.policy_logprobs

    monkeypatch.setitem(registry.CORRECTIONS, "square_root_is", registry.Correction(square_root_is))
    with jax.enable_x64(False):
        config = tiny_config(**{"steps": 2, "lag.max_lag": 1, "metrics.parameter_drift": False})
        config.correction.update({"name": "square_root_is", "cap": 1.2})
        validation.validate(config, 1)
        run = build_run(config)
        start = jax.device_get(run.state.params)
        records = list(train(run))
        assert len(records) == 2 and records[-1]["update_norm"] > 0
        assert distance(start, jax.device_get(run.state.params)) > 0

    policy, behavior, proximal, advantages, mask = random_batch()
    _, gradient = ascent(
        "square_root_is",
        (policy, behavior, proximal, advantages, mask),
        surrogate_config("none"),
        {"cap": 1.2},
    )
    weight = np.minimum(np.exp((policy - behavior) / 2), 1.2) / (
        14 * np.maximum(mask.sum(axis=1, keepdims=True), 1)
    )
    np.testing.assert_allclose(
        gradient, np.where(mask, weight * advantages[:, None], 0.0), rtol=1e-12
    )
