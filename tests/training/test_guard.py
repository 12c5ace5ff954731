"""The guard: alarms and scales of a float64 reference, its place in a run, and exact resumption."""

import math
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.train import __main__ as experiment
from experiments.train.measure import alarm_line
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.runtime.records import plain, read_jsonl
from staleness_grpo.training import guard, learner
from staleness_grpo.training.checkpoint import config_hash
from staleness_grpo.training.loop import train
from tests.helpers import killing
from tests.helpers.tiny import tiny_config

# A policy that moves far at each step, so that it has several alarms.
OFTEN = {"lag.max_lag": 2, "guard.mode": "scale", "guard.level": 1e-3, "optimizer.name": "sgd"}
OFTEN |= {"optimizer.learning_rate": 20.0}


def reference(signs, oldest, level, factor):
    """Returns average, scale and alarm of each step, in float64, from the formulas of the guard.

    Step t has version t. `oldest` has the oldest behavior version of each step.
    """
    average, scale, last = 0.0, 1.0, -1
    averages, scales, alarms = [], [], []
    for step, (sign, version) in enumerate(zip(signs, oldest, strict=True)):
        average = 0.8 * average + 0.2 * sign if version > last else 0.0
        alarm = not average <= level or math.isinf(average)
        averages.append(average)
        if alarm:
            average, last, scale = 0.0, step, scale * factor
        scales.append(scale)
        alarms.append(alarm)
    return np.array(averages), np.array(scales), np.array(alarms)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_alarms_and_scales_are_those_of_the_reference(factor):
    rng = np.random.default_rng(0)
    num_steps, level = 80, 0.1
    signs = rng.lognormal(np.log(level), 0.5, num_steps)
    signs[[20, 21, 22, 50, 51]] = np.nan
    signs[[35, 36, 65]] = np.inf
    versions = np.arange(num_steps)
    behavior_SxN = np.maximum(versions[:, None] - rng.integers(0, 6, (num_steps, 3)), 0)
    averages, scales, alarms = reference(signs, behavior_SxN.min(axis=1), level, factor)
    # The sequence has what could go wrong: NaN that is an alarm, and NaN that is not judged.
    not_finite = ~np.isfinite(signs)
    assert (alarms & not_finite).any() and (~alarms & not_finite).any()
    assert 5 < alarms.sum() and (alarms & ~not_finite).any()

    transformation = guard.guard(level, factor)
    step_of = jax.jit(transformation.update)
    gradient = {"a": jnp.array([3.0, -4.0]), "b": jnp.array(0.25, jnp.bfloat16)}
    state = transformation.init(gradient)
    for step in range(num_steps):
        updates, state = step_of(
            gradient,
            state,
            log_ratio_second_moment=jnp.float32(signs[step]),
            policy_version=jnp.int32(step),
            behavior_version_N=jnp.asarray(behavior_SxN[step], jnp.int32),
        )
        metrics = guard.guard_metrics((state, {"scale": jnp.zeros(3)}))
        assert bool(metrics["guard_alarm"]) == alarms[step], step
        assert float(metrics["guard_scale"]) == scales[step], step  # powers of 2 are exact
        # float32 sums
        np.testing.assert_allclose(metrics["guard_average"], averages[step], rtol=1e-6)
        for name, leaf in gradient.items():
            assert updates[name].dtype == leaf.dtype
            np.testing.assert_array_equal(updates[name], (scales[step] * leaf).astype(leaf.dtype))
        assert int(state.acted_at) == max(versions[: step + 1][alarms[: step + 1]], default=-1)


def test_an_average_at_the_level_is_no_alarm_and_one_above_it_is():
    """The level is the average after one sign of 0.5, which float32 and float64 both round up."""
    transformation = guard.guard(float(np.float32(0.1)), 0.5)
    state = transformation.init(())
    arguments = dict(policy_version=jnp.int32(0), behavior_version_N=jnp.zeros(2, jnp.int32))
    found = [
        bool(transformation.update((), state, log_ratio_second_moment=sign, **arguments)[1].alarm)
        for sign in (0.5, 0.50001)
    ]
    assert found == [False, True]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw"])
def test_every_optimizer_is_scaled_after_its_own_rules(name):
    config = default_config()
    config.optimizer.update(dict(name=name, learning_rate=0.1, warmup_steps=2, max_grad_norm=1.0))
    config.optimizer.weight_decay = 0.5 if name == "adamw" else 0.0
    config.correction.update_rule = "vcpo"
    config.guard.update(dict(mode="scale", level=0.1, factor=0.5))
    parts = (config.optimizer, 6, config.correction)
    plain_one = learner.make_optimizer(*parts, guard=default_config().guard)
    guarded = learner.make_optimizer(*parts, guard=config.guard)
    params = jnp.array([1.0, -2.0])
    states = plain_one.init(params), guarded.init(params)
    assert not guard.guard_metrics(states[0])
    chex.assert_trees_all_equal(states[0], learner.make_optimizer(*parts).init(params))
    signs, scales = [0.1, 5.0, 0.1, 5.0, 5.0], [1.0, 0.5, 0.5, 0.25, 0.125]
    for step, (sign, scale) in enumerate(zip(signs, scales, strict=True)):
        gradient = jnp.array([3.0, -4.0 - step])
        extra = dict(
            sequence_ess=0.5,
            log_ratio_second_moment=sign,
            policy_version=jnp.int32(step),
            behavior_version_N=jnp.full(2, step),
        )
        expected, plain_state = plain_one.update(gradient, states[0], params, **extra)
        updates, guarded_state = guarded.update(gradient, states[1], params, **extra)
        states = plain_state, guarded_state
        np.testing.assert_array_equal(updates, scale * expected)  # powers of 2 are exact
        assert np.all(updates != 0)


def test_a_scale_of_one_rounds_nothing_in_an_optimized_program():
    """A compiler may join the last product of an update and the sum with the parameters."""
    # The tests' own flags leave such optimizations out.
    optimized = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    params, gradient = jax.random.normal(jax.random.key(0), (2, 4096))
    config = default_config()
    config.optimizer.update(dict(name="sgd", learning_rate=0.013, warmup_steps=3))
    found = []
    for mode in ("off", "scale"):
        config.guard.mode = mode
        optimizer = optax.with_extra_args_support(
            learner.make_optimizer(config.optimizer, 9, guard=config.guard)
        )

        def step(params, state, gradient, sign, optimizer=optimizer):
            extra = dict(policy_version=jnp.int32(0), behavior_version_N=jnp.zeros(2, jnp.int32))
            updates, _ = optimizer.update(
                gradient, state, params, log_ratio_second_moment=sign, **extra
            )
            return optax.apply_updates(params, updates)

        compiled = jax.jit(step, compiler_options=optimized)
        found.append(compiled(params, optimizer.init(params), gradient, jnp.float32(0)))
    np.testing.assert_array_equal(*found)


def without_guard(records):
    names = ("guard_average", "guard_scale", "guard_alarm", "time_step")
    return [{k: v for k, v in plain(record).items() if k not in names} for record in records]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_guard_without_an_alarm_and_one_that_warns_change_no_bit(name):
    def trained(**fields):
        run = build_run(tiny_config(**{"lag.max_lag": 2, "optimizer.name": name} | fields))
        return run, list(train(run))

    off, off_records = trained()
    assert not any(field.startswith("guard") for field in off_records[0])
    for mode, level, has_alarms in (("scale", 1e6, False), ("warn", 1e-12, True)):
        run, records = trained(**{"guard.mode": mode, "guard.level": level})
        assert without_guard(records) == without_guard(off_records)
        chex.assert_trees_all_equal(
            jax.device_get(run.state.params), jax.device_get(off.state.params)
        )
        assert any(record["guard_alarm"] for record in records) == has_alarms
        assert all(record["guard_scale"] == 1 for record in records)


@pytest.mark.parametrize(
    "fields",
    [
        {"lag.schedule": "uniform"},
        {"updates_per_batch": 2, "microbatch_prompts": 1, "correction.name": "decoupled_ppo"},
        {"lag.max_lag": 3, "lag.schedule": "cyclic"},
    ],
)
def test_a_training_is_scaled_as_its_own_records_say(fields):
    config = tiny_config(**OFTEN | {"steps": 14} | fields)
    run = build_run(config)
    records = [plain(record) for record in train(run)]
    signs = [record["log_ratio_second_moment"] for record in records]
    oldest = [record["step"] - record["lag_max"] for record in records]
    averages, scales, alarms = reference(signs, oldest, config.guard.level, config.guard.factor)
    # float32 sums
    np.testing.assert_allclose([r["guard_average"] for r in records], averages, rtol=1e-5)
    np.testing.assert_array_equal([r["guard_scale"] for r in records], scales)
    np.testing.assert_array_equal([r["guard_alarm"] for r in records], alarms)
    assert 2 <= alarms.sum() < len(records)
    lengths = [record["update_norm"] for record in records]
    rate = config.optimizer.learning_rate
    expected = [
        rate * scale * record["grad_norm"] for scale, record in zip(scales, records, strict=True)
    ]
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)  # float32 sums


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes_and_says_each_alarm(tmp_path, capsys):
    flight = OFTEN | {"steps": 20, "lag.schedule": "uniform", "checkpoint.save_every": 2}
    flight["guard.level"] = 1e-4
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    experiment.main(tiny_config(**flight), whole)
    records = read_jsonl(whole / "metrics.jsonl")
    alarms = [record["step"] for record in records if record["guard_alarm"]]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alarm")]
    assert said == [
        f"alarm at step {step}: the average of (log ratio)^2 is "
        f"{records[step]['guard_average']:.3g}, above guard.level=0.0001: "
        f"learning rate now {0.5**number:.3g} of its schedule"
        for number, step in enumerate(alarms, start=1)
    ]
    process = killing.start(killed, flight)
    assert killing.kill_after(process, killed, records=7, sleep=0)
    assert killing.end(process)[0] == -signal.SIGKILL
    saved = max(int(path.name[5:]) for path in (killed / "checkpoints").glob("step_????????"))
    assert min(alarms) < saved < max(alarms)
    experiment.main(tiny_config(**flight), killed)
    assert f"resuming from step {saved}" in capsys.readouterr().err
    assert killing.ending(killed) == killing.ending(whole)
    names = killing.final_arrays(killed)
    assert sum(".acted_at" in name for name in names) == 1


def test_a_line_about_an_average_that_is_not_finite():
    config = default_config().guard
    config.mode = "warn"
    record = {"step": 7, "guard_average": None, "guard_scale": 1.0}
    line = "alarm at step 7: the average of (log ratio)^2 is not finite: warn only"
    assert alarm_line(record, config) == line


def test_only_a_guard_that_is_on_is_in_the_hash_of_a_config():
    def hash_of(mode, level):
        return config_hash(tiny_config(**{"guard.mode": mode, "guard.level": level}))

    # Configs of before the guard have no such section, and go on.
    assert hash_of("off", 0.1) == hash_of("off", 0.2)
    assert len({hash_of(mode, 0.1) for mode in guard.MODES}) == 3
    assert hash_of("scale", 0.1) != hash_of("scale", 0.2)
