"""The loop: lag 0 is synchronous bit for bit, and lag changes only the policy that answers."""

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.runtime.records import plain
from staleness_grpo.training import learner
from staleness_grpo.training.drift import distance
from staleness_grpo.training.loop import train
from staleness_grpo.training.rollouts import EVALUATION, TRAINING
from tests.helpers import reference
from tests.helpers.tiny import tiny_config


def batches_seen(run, config):
    """The rollouts handed to the update, in order, and the records."""
    seen, update = [], run.update
    run.update = lambda state, batch: (seen.append(jax.device_get(batch)), update(state, batch))[1]
    return list(train(run)), seen


def test_lag_zero_through_the_buffer_is_bitwise_the_loop_without_one():
    config = tiny_config()
    buffered = build_run(config)
    records = list(train(buffered))

    plain_loop = build_run(config)
    slots = np.arange(config.num_prompts)
    losses = []
    for step in range(config.steps):
        steps = np.full_like(slots, step)
        ((_, _, pending),) = plain_loop.generator.generate(
            plain_loop.state.params, step, steps, slots
        )
        batch = jax.device_put(pending.result(), mesh_lib.batch_sharding(plain_loop.mesh))
        with jax.set_mesh(plain_loop.mesh):
            plain_loop.state, metrics = plain_loop.update(plain_loop.state, batch)
        losses.append(float(metrics["loss"]))
    chex.assert_trees_all_equal(jax.device_get(buffered.state), jax.device_get(plain_loop.state))
    assert [record["loss"] for record in records] == losses
    start = build_run(config).state.params
    assert distance(start, buffered.state.params) > 0  # it did learn


def test_minibatches_learn_from_one_batch_with_the_policy_at_its_start_as_proximal():
    """Compares with a loop without a buffer: two updates per batch, batches one update old."""
    settings = {"updates_per_batch": 2, "lag.max_lag": 2, "correction.name": "decoupled_ppo"}
    config = tiny_config(**settings, **{"optimizer.learning_rate": 0.05})
    run = build_run(config)
    records, seen = batches_seen(run, config)

    loop = build_run(config)
    policy = loop.programs.policy
    surrogate = SurrogateConfig(**config.surrogate.to_dict())

    def loss_fn(params, batch, proximal):
        responses = batch.responses
        logprobs, _ = response_logprobs(
            policy,
            params,
            batch.prompts,
            responses.tokens_NxGxR,
            responses.mask_NxGxR,
            config.sampler.temperature,
        )
        advantages = group_advantages(
            batch.rewards_NxG, normalize_std=True, std_epsilon=surrogate.std_epsilon
        )
        loss, _ = corrected_surrogate(
            logprobs,
            responses.behavior_logprobs_NxGxR,
            proximal,
            advantages,
            responses.mask_NxGxR,
            "response",
            registry.bind("decoupled_ppo", surrogate, {}),
        )
        return loss, logprobs

    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    optimizer = learner.make_optimizer(config.optimizer, config.steps)

    @jax.jit
    def descend(ascent, opt_state, params):
        updates, opt_state = optimizer.update(ascent, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = jax.device_get(loop.state.params)
    opt_state, versions, losses, differs = jax.jit(optimizer.init)(params), [params], [], 0.0
    for start in range(0, config.steps, 2):
        behavior = versions[max(start - 1, 0)]
        at_start = versions[start]
        for step in (start, start + 1):
            slots = np.arange(2)
            prompts = loop.generator.prompts(TRAINING, np.full(2, step), slots)
            responses = loop.generator.sample(
                behavior, prompts, TRAINING, np.full(2, step), slots, config.group_size
            )
            batch = loop.generator.score(prompts, responses, 0)
            proximal = gradient(at_start, batch, batch.responses.behavior_logprobs_NxGxR)[0][1]
            (loss, logprobs), ascent = gradient(versions[step], batch, proximal)
            differs = max(differs, float(jnp.max(jnp.abs(logprobs - proximal))))
            params, opt_state = descend(ascent, opt_state, versions[step])
            versions.append(params)
            losses.append(float(loss))
    np.testing.assert_array_equal([r["lag_max"] for r in records], [0, 1, 1, 2, 1, 2])
    assert [len(batch.rewards_NxG) for batch in seen] == [2] * 6
    # Float32 sums in another order, magnified by Adam where a gradient is nearly 0.
    np.testing.assert_allclose([r["loss"] for r in records], losses, atol=2e-5)
    chex.assert_trees_all_close(
        jax.device_get(run.state.params), jax.device_get(versions[-1]), atol=2e-3
    )
    assert differs > 0.01  # the second minibatch's policy is not the proximal one


@pytest.mark.parametrize(
    ("schedule", "lags"),
    [("constant", [0, 1, 2, 3, 3, 3]), ("cyclic", [0, 1, 2, 0, 1, 2]), ("uniform", None)],
)
def test_realised_lag_is_the_scheduled_one(schedule, lags):
    config = tiny_config(**{"lag.schedule": schedule, "lag.max_lag": 3})
    records, seen = batches_seen(build_run(config), config)
    realised = [step - batch.behavior_version_N for step, batch in enumerate(seen)]
    if lags is not None:
        np.testing.assert_array_equal(realised, np.broadcast_to(np.array(lags)[:, None], (6, 4)))
    assert np.max(realised) <= 3
    for record, lag_N in zip(records, realised, strict=True):
        assert record["lag_mean"] == lag_N.mean() and record["lag_max"] == lag_N.max()
        np.testing.assert_array_equal(record["lag_histogram"], np.bincount(lag_N, minlength=4))


def test_behavior_logprobs_are_those_of_the_promised_version():
    """Recomputes them from the parameters of version t - S, and from those of t."""
    config = tiny_config(**{"lag.max_lag": 2})
    run = build_run(config)
    versions, update = [jax.device_get(run.state.params)], run.update
    seen = []

    def spy(state, batch):
        seen.append(jax.device_get(batch))
        state, metrics = update(state, batch)
        versions.append(jax.device_get(state.params))
        return state, metrics

    run.update = spy
    records = list(train(run))
    logprobs_of = jax.jit(
        lambda params, batch: learner.response_logprobs(
            run.programs.policy,
            params,
            batch.prompts,
            batch.responses.tokens_NxGxR,
            batch.responses.mask_NxGxR,
            1.0,
        )[0]
    )
    for step, batch in enumerate(seen):
        recorded = batch.responses.behavior_logprobs_NxGxR
        np.testing.assert_allclose(
            logprobs_of(versions[max(step - 2, 0)], batch), recorded, atol=1e-5
        )
        current, mask = np.asarray(logprobs_of(versions[step], batch)), batch.responses.mask_NxGxR
        if step > 0:
            assert np.abs(current - recorded).max() > 1e-3
        # And the learner puts them into the ratio: its loss is the reference's, from the recorded
        # log-probabilities.
        advantages = [
            reference.group_advantages(list(group), True, 1e-4)
            for group in batch.rewards_NxG.astype(float)
        ]
        flat = [array.reshape(-1, mask.shape[-1]) for array in (current, recorded, mask)]
        value, _ = reference.surrogate(
            flat[0], flat[1], np.ravel(advantages), flat[2], 0.2, 0.2, "response"
        )
        np.testing.assert_allclose(
            records[step]["loss"], -value, atol=1e-5
        )  # float32 log-probs of 16 responses
        second_moment = np.mean((current - recorded)[mask] ** 2)
        np.testing.assert_allclose(
            records[step]["log_ratio_second_moment"], second_moment, rtol=1e-3, atol=1e-9
        )


def test_prompts_and_noise_do_not_know_the_version():
    run = build_run(tiny_config())
    slots = np.arange(4)
    at_0, at_7 = (
        next(run.generator.generate(run.state.params, version, np.full(4, 9), slots))[2].result()
        for version in (0, 7)
    )
    chex.assert_trees_all_equal(at_0.prompts, at_7.prompts)
    chex.assert_trees_all_equal(at_0.responses, at_7.responses)
    np.testing.assert_array_equal(at_7.behavior_version_N, 7)
    other_step = next(run.generator.generate(run.state.params, 0, np.full(4, 10), slots))[
        2
    ].result()
    assert np.any(other_step.responses.tokens_NxGxR != at_0.responses.tokens_NxGxR)


def test_evaluation_has_prompts_and_noise_of_its_own():
    generator, params = (run := build_run(tiny_config())).generator, run.state.params
    slots = np.arange(16)
    prompts = generator.prompts(EVALUATION, np.zeros_like(slots), slots)
    assert np.any(
        prompts.index_N != generator.prompts(TRAINING, np.zeros_like(slots), slots).index_N
    )

    def rewards(purpose):
        sampled = [
            generator.sample(params, prompts, purpose, np.full_like(slots, t), slots, 1)
            for t in range(4)
        ]
        return [
            float(generator.score(prompts, responses, 0).rewards_NxG.mean())
            for responses in sampled
        ]

    assert (
        [generator.evaluate(params, step)["eval_reward"] for step in range(4)]
        == rewards(EVALUATION)
        != rewards(TRAINING)
    )


def test_a_partial_batch_is_filled_and_cut_again():
    run = build_run(tiny_config())
    steps, slots = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 0, 2])
    _, rest = run.generator.generate(run.state.params, 0, steps, slots)
    np.testing.assert_array_equal(rest[1], [0, 2])
    assert len(rest[2].result().rewards_NxG) == 2
    again = next(run.generator.generate(run.state.params, 0, np.full(4, 1), np.arange(4)))[
        2
    ].result()
    np.testing.assert_array_equal(
        rest[2].result().responses.tokens_NxGxR, again.responses.tokens_NxGxR[[0, 2]]
    )


def test_records_carry_the_field_names():
    config = tiny_config(**{"eval_every": 3, "lag.max_lag": 2})
    records = [json.loads(json.dumps(plain(record))) for record in train(build_run(config))]
    assert [record["step"] for record in records] == list(range(6))
    for name in (
        "loss",
        "reward",
        "entropy",
        "lag_mean",
        "lag_histogram",
        "drift_from_behavior",
        "drift_from_start",
        "update_norm",
        "grad_norm",
        "gradient_cosine",
        "ratio_mean",
        "ratio_q99",
        "clip_fraction_positive",
        "clip_fraction_negative",
        "approx_kl",
        "ess",
        "log_ratio_second_moment",
        "learning_rate",
        "time_step",
    ):
        assert name in records[-1], name
    assert records[0]["gradient_cosine"] is None and records[1]["gradient_cosine"] is not None
    assert ["eval_reward" in record for record in records] == [True, False, False] * 2
    assert ["gradient_cosine_ceiling" in record for record in records] == [True, False, False] * 2


@pytest.mark.parametrize("schedule", ["constant", "uniform"])
def test_drift_is_measured_from_the_behavior_versions(schedule):
    config = tiny_config(**{"lag.max_lag": 2, "lag.schedule": schedule, "optimizer.name": "sgd"})
    run = build_run(config)
    versions, behavior, update = [jax.device_get(run.state.params)], [], run.update

    def spy(state, batch):
        behavior.append(np.asarray(batch.behavior_version_N))
        state, metrics = update(state, batch)
        versions.append(jax.device_get(state.params))
        return state, metrics

    run.update = spy
    records = list(train(run))
    between = [[float(distance(a, b)) for b in versions] for a in versions]
    for step, record in enumerate(records):
        expected = np.sqrt(np.mean([between[step][version] ** 2 for version in behavior[step]]))
        np.testing.assert_allclose(record["drift_from_behavior"], expected, rtol=1e-5)
        np.testing.assert_allclose(record["drift_from_start"], between[step][0], rtol=1e-5)
        np.testing.assert_allclose(record["update_norm"], between[step + 1][step], rtol=1e-4)
        np.testing.assert_allclose(record["param_norm"], optax.tree.norm(versions[step]), rtol=1e-5)
    if schedule == "uniform":
        assert any(len(set(versions_N)) > 1 for versions_N in behavior)


def test_a_non_finite_value_ends_the_run_as_collapsed():
    config = tiny_config(**{"steps": 20, "optimizer.learning_rate": 1e38, "optimizer.name": "sgd"})
    records = list(train(build_run(config)))
    assert len(records) < 20
    assert [record["collapsed"] for record in records] == [False] * (len(records) - 1) + [True]
    assert records[-1]["not_finite"]
    assert all(math.isfinite(record["loss"]) for record in records[:-1])


def test_same_config_same_bytes():
    config = tiny_config(**{"lag.max_lag": 2, "lag.schedule": "uniform"})
    first, second = build_run(config), build_run(config)
    without_clock = [
        [{k: v for k, v in plain(r).items() if k != "time_step"} for r in train(run)]
        for run in (first, second)
    ]
    assert json.dumps(without_clock[0]) == json.dumps(without_clock[1])
    chex.assert_trees_all_equal(jax.device_get(first.state), jax.device_get(second.state))
