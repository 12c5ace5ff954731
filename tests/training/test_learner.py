"""The learner's optimizers, and the ceiling of a gradient's cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from staleness_grpo.config.defaults import default_config
from staleness_grpo.training import learner
from staleness_grpo.training.diagnostics import make_cosine_ceiling


def test_optimizers_against_literal_steps():
    def steps(config, gradients):
        optimizer = learner.make_optimizer(config, num_steps=9)
        params = jnp.array([1.0, -2.0])
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(jnp.array(gradient), state, params)
            params = optax.apply_updates(params, updates)
        return params

    config = default_config().optimizer
    config.learning_rate = 0.1
    config.name = "sgd"
    np.testing.assert_allclose(steps(config, [[3.0, 4.0]]), [0.7, -2.4], rtol=1e-6)
    config.max_grad_norm = 1.0  # the global norm is 5
    np.testing.assert_allclose(steps(config, [[3.0, 4.0]]), [0.94, -2.08], rtol=1e-6)
    config.max_grad_norm = 0.0
    config.warmup_steps = 2  # half the rate, then all of it
    np.testing.assert_allclose(steps(config, [[3.0, 4.0], [1.0, 1.0]]), [0.75, -2.3], rtol=1e-6)
    config.warmup_steps = 0
    config.name, config.b1 = "momentum", 0.5  # the second step has 1 + 0.5 * 3 and 1 + 0.5 * 4
    np.testing.assert_allclose(steps(config, [[3.0, 4.0], [1.0, 1.0]]), [0.45, -2.7], rtol=1e-6)
    config.b1 = 0.9
    config.name = "adam"  # the first step is learning_rate * sign
    np.testing.assert_allclose(steps(config, [[3.0, -4.0]]), [0.9, -1.9], rtol=1e-5)
    config.name, config.weight_decay = "adamw", 0.5
    np.testing.assert_allclose(steps(config, [[3.0, -4.0]]), [0.9 - 0.05, -1.9 + 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("decay", "warmup", "end", "expected"),
    [
        ("none", 0, None, [1.0] * 7),
        ("linear", 0, None, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
        ("linear", 2, None, [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0, 3, [1, 2 / 3, 1 / 3, 0, 0, 0, 0]),
        ("cosine", 0, None, [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(7)]),
        ("cosine", 2, 4, [0.5, 1, 1, 0.5, 0, 0, 0]),
    ],
)
def test_the_learning_rate_rises_and_falls(decay, warmup, end, expected):
    config = default_config().optimizer
    config.update(dict(learning_rate=0.1, decay=decay, warmup_steps=warmup, decay_steps=end))
    schedule = learner.learning_rate_schedule(config, num_steps=6)
    found = [float(schedule(step)) for step in range(7)]
    np.testing.assert_allclose(found, 0.1 * np.array(expected), atol=1e-8)


def test_weight_decay_may_leave_norms_and_biases_out():
    config = default_config().optimizer
    config.update(dict(name="adamw", learning_rate=0.1, weight_decay=0.5))
    params = {"query": {"kernel": 1.0, "bias": 1.0}, "norm": {"scale": 1.0}, "embedding": 1.0}
    params = jax.tree.map(jnp.float32, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for decay_norms in (True, False):
        config.decay_norms = decay_norms
        optimizer = learner.make_optimizer(config, num_steps=9)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        vectors = -0.05 if decay_norms else 0.0
        np.testing.assert_allclose(updates["query"]["kernel"], -0.05, rtol=1e-6)
        np.testing.assert_allclose(updates["embedding"], -0.05, rtol=1e-6)
        np.testing.assert_allclose(updates["query"]["bias"], vectors, rtol=1e-6)
        np.testing.assert_allclose(updates["norm"]["scale"], vectors, rtol=1e-6)


def test_cosine_ceiling_tells_signal_from_noise():
    """Gradients are mu + noise: the ceiling is |mu|^2 / (|mu|^2 + sigma^2 D / N)."""
    n, d = 4096, 64
    noise = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    ceiling = make_cosine_ceiling(
        lambda params, batch: (jnp.mean(batch @ params), {}), num_prompts=n
    )
    mu = np.full(d, 1 / 64, np.float32)  # |mu|^2 = 1/64 = sigma^2 D / N
    params = jnp.zeros(d)
    assert ceiling(params, jnp.asarray(mu + noise)) == pytest.approx(0.5, abs=0.12)
    assert ceiling(params, jnp.asarray(np.broadcast_to(mu, noise.shape))) == pytest.approx(
        1.0, abs=1e-4
    )
    assert abs(ceiling(params, jnp.asarray(noise))) < 0.4
