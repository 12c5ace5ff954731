"""Every correction against the NumPy reference, at its edges and in the limits that theory gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo import learner, train, validation
from staleness_grpo.objective.corrections import registry, settings
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate, token_weights
from staleness_grpo.objective.tokens import TokenBatch
from tests import correction_reference
from tests.test_train import tiny_config

CLIP = {"clip_low": 0.15, "clip_high": 0.3}  # asymmetric, so that swapped bounds show
# Parameters at which this file's batches meet every branch, where the defaults do not.
CHOSEN = {
    "gspo": {"clip_low": 0.1, "clip_high": 0.2},
    "cispo": {"clip_low": 0.2, "clip_high": 0.4},
    "token_tis": {"cap": 1.3},
    "sequence_tis": {"cap": 1.3},
    "geometric_tis": {"cap": 1.1},
    "aipo": {"cap": 1.3},
    "token_mis": {"ratio_low": 0.8, "ratio_high": 1.4},
    "sequence_mis": {"ratio_low": 0.6, "ratio_high": 2.0},
    "negative_mask": {"delta": 0.1},
    "mu_grpo": {"clip_low": 0.5, "clip_high": 0.8, "veto_low": 0.6, "veto_high": 1.6},
    "stable_reinforce": {"ratio_low": 0.5, "ratio_high": 1.25, "sigmas": 1.1},
    "sat": {"quantile": 0.6},
    "dppo_tv": {"probability_change": 0.05},
    "m2po_authors": {"clip_low": 0.05, "clip_high": 0.05},
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def surrogate_config(name, **fields):
    """A surrogate that the correction's definition allows."""
    correction = registry.CORRECTIONS[name]
    fixed = {"length_normalization": correction.length_normalization, "normalize_std": correction.normalize_std}
    return SurrogateConfig(**{**CLIP, **fields, **{key: value for key, value in fixed.items() if value is not None}})


def random_batch(seed=0, num_responses=14, length=6, drift=0.4):
    """Policy, behavior and proximal log-probabilities, advantages, mask: two responses of each length from 0 on."""
    rng = np.random.default_rng(seed)
    behavior = -rng.exponential(size=(num_responses, length)) - 0.05
    proximal = behavior + rng.normal(scale=drift, size=behavior.shape)
    policy = proximal + rng.normal(scale=drift, size=behavior.shape)
    mask = np.arange(length) < np.arange(num_responses)[:, None] % (length + 1)
    return policy, behavior, proximal, rng.normal(size=num_responses), mask


@functools.partial(jax.jit, static_argnames=("name", "config"))
def jitted(arrays, overrides, name, config):
    correction = registry.bind(name, config, overrides)

    def loss(policy_logprobs):
        return corrected_surrogate(policy_logprobs, *arrays[1:], config.length_normalization, correction)[0]

    return jax.value_and_grad(loss)(arrays[0])


def ascent(name, arrays, config, overrides):
    """(L, dL/dlog pi) of a batch, by the package. The parameters are traced: one program for all their values."""
    loss, gradient = jitted(arrays, overrides, name, config)
    return -np.asarray(loss), -np.asarray(gradient)


def expected(name, arrays, config, overrides):
    """(L, dL/dlog pi) of a batch, by the reference."""
    parameters = registry.parameters(name) | overrides
    if registry.uses_surrogate_clip(name):
        parameters |= {"clip_low": config.clip_low, "clip_high": config.clip_high}
    batch = correction_reference.Batch(*arrays)
    objective, slope = getattr(correction_reference, name)(batch, **parameters)
    num_responses, length = batch.mask.shape
    divisor = {
        "response": num_responses * np.maximum(batch.mask.sum(axis=1, keepdims=True), 1),
        "constant": num_responses * length,
        "tokens": max(batch.mask.sum(), 1),
    }[config.length_normalization]
    return np.sum(objective / divisor), slope / divisor


def assert_matches(name, arrays, overrides):
    config = surrogate_config(name)
    value, gradient = ascent(name, arrays, config, overrides)
    expected_value, expected_gradient = expected(name, arrays, config, overrides)
    # 1e-12: some hundred float64 roundings; relative to the largest entry, as values of ratios e^20 cancel.
    scale = max(np.max(np.abs(expected_gradient)), 1e-3)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12, atol=1e-12 * max(scale, 1.0))
    return gradient


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_matches_the_published_formula(name):
    """Masked NaNs, an empty response, single tokens, then log-ratios of +-50, then everything masked: one program."""
    overrides = CHOSEN.get(name, {})
    policy, behavior, proximal, advantages, mask = random_batch()
    dirty = [np.where(mask, x, np.nan) for x in (policy, behavior, proximal)]
    gradient = assert_matches(name, (*dirty, advantages, mask), overrides)
    assert np.any(gradient[mask]) and not np.any(gradient[~mask])

    extreme = policy.copy()
    extreme[mask.sum(axis=1) == 1, 0] = behavior[mask.sum(axis=1) == 1, 0] + 50.0
    extreme[4, :4] = behavior[4, :4] + [50.0, -50.0, 0.01, -50.0]
    assert_matches(name, (extreme, behavior, proximal, advantages, mask), overrides)
    assert_matches(name, (extreme, behavior, extreme, -advantages, mask), overrides)  # the proximal policy: theta

    value, gradient = ascent(name, (*dirty, advantages, np.zeros_like(mask)), surrogate_config(name), overrides)
    assert value == 0 and not np.any(gradient)


UNBOUNDED = {"none", "token_is", "sequence_is", "decoupled_ppo"}
BOUND_A_WEIGHT = {"cispo", "aipo", "topr", "topr_token", "topr_geometric", "token_tis", "sequence_tis", "geometric_tis"}


@pytest.mark.parametrize("name", sorted(set(registry.CORRECTIONS) - UNBOUNDED))
def test_the_batch_above_meets_every_branch(name):
    """Whatever cuts keeps some tokens and cuts some; whatever bounds a weight bounds one."""
    arrays, config = random_batch(), surrogate_config(name)
    _, slope = expected(name, arrays, config, CHOSEN.get(name, {}) | ({"penalty": 0.0} if name == "dppo_tv" else {}))
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
        ("m2po_authors", {}, np.log(1.48), 1.0, True),  # over the budget, but never tighter than 1.5
        ("m2po_authors", {}, np.log(0.69), -1.0, False),
        ("m2po_authors", {}, np.log(1.52), -1.0, True),
        ("m2po_areal", {}, 0.21, 1.0, False),
        ("m2po_areal", {}, 0.19, 1.0, True),
    ],
)
def test_clip_edges_by_sign_of_the_advantage(name, overrides, log_ratio, advantage, kept):
    behavior = np.array([[-1.0]])
    arrays = (behavior + log_ratio, behavior, behavior + log_ratio, np.array([advantage]), np.array([[True]]))
    _, gradient = ascent(name, arrays, surrogate_config(name), overrides)
    assert (gradient[0, 0] != 0) == kept
    assert gradient[0, 0] * advantage >= 0


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_a_response_reads_the_others_only_where_the_registry_says_so(name):
    """Or microbatches of it, whose slopes are taken one by one, would have another gradient than the batch."""
    config, reads = surrogate_config(name), False
    for drift in (0.08, 0.15, 0.25):  # where clip ranges, budgets and quantiles begin to bind
        arrays = random_batch(num_responses=70, drift=drift)
        slopes = ascent(name, arrays, config, {})[1]
        for shift in (1.0, -1.0, 0.95 * (arrays[1] - arrays[0])):  # far away, and close to the behavior policy
            policy, proximal = arrays[0].copy(), arrays[2].copy()
            policy[35:] += np.broadcast_to(shift, policy.shape)[35:]  # the second half of the responses alone
            proximal[35:] += np.broadcast_to(shift, policy.shape)[35:]
            moved = ascent(name, (policy, arrays[1], proximal, *arrays[3:]), config, {})[1]
            reads |= np.any(slopes[:35] != moved[:35])
    assert reads == registry.CORRECTIONS[name].reads_other_responses


@pytest.mark.parametrize("name", registry.CORRECTIONS)
def test_equals_plain_grpo_on_policy(name):
    """At lag 0 every definition reduces to A grad log pi."""
    _, behavior, _, _, mask = random_batch()
    advantages = np.resize([1.0, -1.0], len(behavior))  # no outliers: a filter on their size keeps all
    config = surrogate_config(name)
    _, gradient = ascent(name, (behavior, behavior, behavior, advantages, mask), config, CHOSEN.get(name, {}))
    plain = token_weights(mask, config.length_normalization) * advantages[:, None]
    np.testing.assert_allclose(gradient, plain, rtol=1e-12, atol=1e-15)


def test_token_tis_tends_to_token_is_as_the_cap_grows():
    policy, behavior, _, advantages, mask = random_batch()
    arrays, config = (policy, behavior, policy, advantages, mask), surrogate_config("token_is")
    _, limit = ascent("token_is", arrays, config, {})
    distances = [
        np.abs(ascent("token_tis", arrays, config, {"cap": cap})[1] - limit).max() for cap in (1.0, 1.5, 2.0, 1e4)
    ]
    assert distances[0] > distances[1] > distances[2] > 0 and distances[3] < 1e-15


def test_gspo_equals_grpo_clip_for_single_tokens():
    arrays = random_batch(num_responses=40, length=1)
    _, gradient = ascent("gspo", arrays, surrogate_config("gspo"), CLIP)
    _, plain = ascent("grpo_clip", arrays, surrogate_config("grpo_clip"), {})
    assert np.count_nonzero(plain) not in (0, plain.size)
    np.testing.assert_allclose(gradient, plain, rtol=1e-13)


def test_clip_fraction_counts_what_the_correction_cuts():
    arrays, config = random_batch(), surrogate_config("negative_mask")
    correction = registry.bind("negative_mask", config, CHOSEN["negative_mask"])
    _, diagnostics = corrected_surrogate(*arrays, config.length_normalization, correction)
    _, slope = expected("negative_mask", arrays, config, CHOSEN["negative_mask"])
    cut, sign = slope[arrays[-1]] == 0, np.broadcast_to(arrays[3][:, None], slope.shape)[arrays[-1]]
    np.testing.assert_allclose(diagnostics["clip_fraction"], cut.mean(), rtol=1e-12)
    np.testing.assert_allclose(diagnostics["clip_fraction_positive"], cut[sign > 0].mean(), rtol=1e-12)
    np.testing.assert_allclose(diagnostics["clip_fraction_negative"], cut[sign < 0].mean(), rtol=1e-12)


def test_response_statistics_leave_out_masked_places():
    policy, behavior, proximal, advantages, mask = (jnp.asarray(x) for x in random_batch())
    logprobs = [jnp.where(mask, x, 0.0) for x in (policy, behavior, proximal)]
    tokens = TokenBatch(*logprobs, advantages[:, None], mask, jnp.ones_like(advantages[:, None]))
    lengths = np.asarray(mask).sum(axis=1, keepdims=True)
    ones = jnp.ones_like(policy)  # not 0 where masked, as log-ratios are
    np.testing.assert_array_equal(tokens.response_sum(ones), lengths)
    np.testing.assert_array_equal(tokens.response_mean(ones), np.minimum(lengths, 1))


def test_bind_refuses_by_name():
    config = SurrogateConfig()
    for name, overrides, words in (
        ("telepathy", {}, "correction must be one of"),
        ("none", {"cap": 2.0}, "none has the parameters none, got cap"),
        ("grpo_clip", {"clip_low": 0.1}, "got clip_low"),
        ("dr_grpo", {}, "length_normalization of dr_grpo is 'constant'"),
    ):
        with pytest.raises(ValueError, match=words):
            registry.bind(name, config, overrides)
    with pytest.raises(ValueError, match="normalize_std of dr_grpo"):
        registry.bind("dr_grpo", dataclasses.replace(config, length_normalization="constant"), {})


def test_every_parameter_has_its_flag():
    update_parameters = [registry.own_parameters(u.transformation) for u in learner.UPDATE_CORRECTIONS.values()]
    known = set().union(*map(registry.parameters, registry.CORRECTIONS), *update_parameters)
    assert known == set(settings.PARAMETERS)


def test_a_correction_of_ones_own_trains(monkeypatch):
    def square_root_is(tokens, *, cap=2.0):
        """sg(min(sqrt(rho), cap)) A log pi_theta."""
        weight = jax.lax.stop_gradient(jnp.minimum(jnp.sqrt(tokens.ratio()), cap))
        return weight * tokens.advantages * tokens.policy_logprobs

    monkeypatch.setitem(registry.CORRECTIONS, "square_root_is", registry.Correction(square_root_is))
    with jax.enable_x64(False):
        config = tiny_config(**{"steps": 2, "lag.max_lag": 1, "metrics.parameter_drift": False})
        config.correction.update({"name": "square_root_is", "cap": 1.2})
        validation.validate(config, 1)
        run = train.build(config)
        start = jax.device_get(run.state.params)
        records = list(train.train(run, config))
        assert len(records) == 2 and records[-1]["update_norm"] > 0
        assert learner.distance(start, jax.device_get(run.state.params)) > 0

    policy, behavior, proximal, advantages, mask = random_batch()
    _, gradient = ascent(
        "square_root_is", (policy, behavior, proximal, advantages, mask), surrogate_config("none"), {"cap": 1.2}
    )
    weight = np.minimum(np.exp((policy - behavior) / 2), 1.2) / (14 * np.maximum(mask.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(gradient, np.where(mask, weight * advantages[:, None], 0.0), rtol=1e-12)
