"""The penalty for the divergence from a reference policy: its gradient, its policy, its runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.objective.reference_kl import ESTIMATORS, kl_terms
from staleness_grpo.objective.surrogate import LENGTH_NORMALIZATIONS, SurrogateConfig
from staleness_grpo.runtime.records import plain
from staleness_grpo.sweeps import program as cell_program
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.loop import train
from staleness_grpo.training.loss import logprobs_loss
from staleness_grpo.types import Prompts, Responses, Rollout
from tests.helpers.tiny import decoder_config, tiny_config

N, G, R = 2, 3, 4
KL = 0.3


@pytest.fixture
def batch():
    """Returns log pi, log pi_ref and a rollout, in float64, with NaN in masked places."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        behavior = -rng.exponential(size=(N, G, R))
        policy = behavior + 0.1 * rng.normal(size=behavior.shape)
        reference = behavior + 0.5 * rng.normal(size=behavior.shape)
        mask = np.arange(R) < rng.integers(1, R + 1, size=(N, G, 1))
        for logprobs in (behavior, policy, reference):
            logprobs[~mask] = np.nan
        prompts = Prompts(np.zeros((N, 1), int), np.ones((N, 1), bool), np.arange(N))
        responses = Responses(np.zeros((N, G, R), int), mask, behavior)
        rewards = rng.normal(size=(N, G))
        rollout = Rollout(
            prompts, responses, rewards, np.zeros(N, int), reference_logprobs_NxGxR=reference
        )
        yield policy, reference, rollout


def reference_section(**fields):
    section = dict(kl=KL, estimator="k3", in_reward=False, checkpoint=None)
    return ConfigDict(section | fields)


def value_and_gradient(policy, rollout, surrogate, reference):
    loss = logprobs_loss(surrogate, reference=reference)

    def total(logprobs):
        value, diagnostics = loss(logprobs, jnp.zeros((N, G, R)), rollout)
        return value, diagnostics

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))
    (value, diagnostics), gradient = compiled(jnp.asarray(policy))
    return value, diagnostics, gradient


# Values and slopes in log pi, written from Schulman's definitions with q = pi and p = pi_ref.
DEFINITIONS = {
    "k1": (lambda q, p: np.log(q / p), lambda q, p: np.ones_like(q)),
    "k2": (lambda q, p: 0.5 * np.log(p / q) ** 2, lambda q, p: -np.log(p / q)),
    "k3": (lambda q, p: p / q - 1 - np.log(p / q), lambda q, p: 1 - p / q),
}


@pytest.mark.parametrize("normalization", LENGTH_NORMALIZATIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_penalty_and_its_gradient_are_those_of_the_definition(estimator, normalization, batch):
    policy, reference, rollout = batch
    surrogate = SurrogateConfig(length_normalization=normalization)
    mask = rollout.responses.mask_NxGxR
    without, _, slope_without = value_and_gradient(policy, rollout, surrogate, None)
    section = reference_section(estimator=estimator)
    value, diagnostics, slope = value_and_gradient(policy, rollout, surrogate, section)
    lengths = mask.sum(axis=-1, keepdims=True)
    weights = {
        "response": 1 / (N * G * lengths),
        "constant": 1 / (N * G * R),
        "tokens": 1 / mask.sum(),
    }[normalization] * mask
    q, p = np.exp(np.where(mask, policy, 0)), np.exp(np.where(mask, reference, 0))
    of_value, of_slope = DEFINITIONS[estimator]
    np.testing.assert_allclose(
        value - without, KL * np.sum(weights * of_value(q, p) * mask), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        slope - slope_without, KL * weights * of_slope(q, p), rtol=0, atol=1e-12
    )
    mean = np.sum(of_value(q, p) * mask) / mask.sum()
    np.testing.assert_allclose(diagnostics["reference_kl"], mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_in_the_reward_it_is_that_of_the_behavior_policy_and_has_no_slope_of_its_own(
    estimator, batch
):
    policy, reference, rollout = batch
    mask = rollout.responses.mask_NxGxR
    behavior = np.exp(np.where(mask, rollout.responses.behavior_logprobs_NxGxR, 0))
    p = np.exp(np.where(mask, reference, 0))
    penalty = KL * np.sum(DEFINITIONS[estimator][0](behavior, p) * mask, axis=-1)
    lowered = dataclasses.replace(rollout, rewards_NxG=rollout.rewards_NxG - penalty)
    surrogate = SurrogateConfig()
    expected, _, expected_slope = value_and_gradient(policy, lowered, surrogate, None)
    section = reference_section(estimator=estimator, in_reward=True)
    value, diagnostics, slope = value_and_gradient(policy, rollout, surrogate, section)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(slope, expected_slope, rtol=0, atol=1e-12)
    # The recorded reward is that of the task.
    np.testing.assert_allclose(diagnostics["reward"], rollout.rewards_NxG.mean(), rtol=1e-12)


def test_the_expected_estimates_are_those_of_the_theory():
    """By enumeration over a distribution of 5 words."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        q, p = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        divergence = np.sum(q * np.log(q / p))
        for estimator in ("k1", "k3"):
            expected = np.sum(q * kl_terms(np.log(q), np.log(p), estimator))
            np.testing.assert_allclose(expected, divergence, rtol=1e-12)

        def expected_gradient(estimator):
            def of_logits(logits):
                logq = jax.nn.log_softmax(logits)
                return jnp.sum(q * kl_terms(logq, np.log(p), estimator))

            return jax.grad(of_logits)(jnp.log(q))

        def exact_gradient(forward):
            def of_logits(logits):
                logq = jax.nn.log_softmax(logits)
                if forward:
                    return jnp.sum(p * (np.log(p) - logq))
                return jnp.sum(jnp.exp(logq) * (logq - np.log(p)))

            return jax.grad(of_logits)(jnp.log(q))

        np.testing.assert_allclose(expected_gradient("k1"), 0, atol=1e-14)
        np.testing.assert_allclose(expected_gradient("k2"), exact_gradient(False), atol=1e-14)
        np.testing.assert_allclose(expected_gradient("k3"), exact_gradient(True), atol=1e-14)


FIELDS = {"reference.kl": 0.5, "lag.max_lag": 2, "checkpoint.save_every": 2, "eval_every": 3}


def test_at_the_start_the_divergence_is_0_and_a_strong_penalty_holds_the_policy():
    plain_steps = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.5, "steps": 20}
    free = list(train(build_run(tiny_config(**plain_steps, **{"reference.kl": 1e-9}))))
    held = list(train(build_run(tiny_config(**plain_steps, **{"reference.kl": 2.0}))))
    assert abs(free[0]["reference_kl"]) < 1e-6 and abs(held[0]["reference_kl"]) < 1e-6
    assert held[-1]["reference_kl"] < 0.5 * free[-1]["reference_kl"]


def test_a_resumed_run_has_the_reference_of_its_start(tmp_path):
    config = tiny_config(**FIELDS)
    whole = [plain(record) for record in train(build_run(config))]
    first = build_run(config)
    steps = train(first, checkpoints := Checkpoints(tmp_path, first.config))
    for _ in range(4):
        next(steps)
    checkpoints.wait()
    again = build_run(config)
    resumed = Checkpoints(tmp_path, again.config)
    resumed.restore(again, lambda reason, hint: AssertionError(reason))
    assert again.step >= 2
    rest = [plain(record) for record in train(again, resumed)]
    for record in (*whole, *rest):
        del record["time_step"]
    assert rest == whole[again.step - len(rest) :] and "reference_kl" in rest[0]


@pytest.mark.slow
def test_the_sweeps_program_has_the_same_penalty():
    config = tiny_config(**FIELDS)
    records = list(train(build_run(config)))
    program = cell_program.make_cell_program(config, max_lag=2, freeze_after=100)
    traces = jax.device_get(jax.jit(program)(cell_program.cell_inputs(config)))
    for name in ("grad_norm", "param_norm", "reward"):
        found = [record[name] for record in records]
        # Float32 sums in another order.
        np.testing.assert_allclose(traces[name], found, rtol=2e-4, err_msg=name)


@pytest.mark.slow
def test_the_reference_may_be_another_folder(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_model

    byte_model.write(tmp_path)
    config = byte_model.text_config(tmp_path)
    config.reference.update(dict(kl=0.1, checkpoint=str(tmp_path)))
    config.steps = 2
    run = build_run(config)
    try:
        assert abs(next(train(run))["reference_kl"]) < 1e-6  # the same folder
    finally:
        run.close()
    other = decoder_config(**{"reference.kl": 0.1, "reference.checkpoint": str(tmp_path)})
    message = "its shape is not the policy's: vocab_size is 264 there, and 5 in the policy: give a"
    with pytest.raises(FieldError, match=f"^reference.checkpoint={tmp_path}: {message}"):
        validation.validate(other, 1)
    config.reference.checkpoint = str(tmp_path / "absent")
    with pytest.raises(FieldError, match="^reference.checkpoint="):
        build_run(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kl", -0.1, "give a number >= 0"),
        ("estimator", "k4", "choose one of k1, k2, k3"),
        ("estimator", "k2", "reference.kl=0 makes no use of it"),
        ("in_reward", True, "reference.kl=0 makes no use of it"),
        ("checkpoint", "folder", "reference.kl=0 makes no use of it"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(field, value, message):
    config = tiny_config(**{f"reference.{field}": value})
    with pytest.raises(FieldError, match=f"^reference.{field}={value}: {message}"):
        validation.validate(config, 1)
