"""The compiled decoder computes each cosine once, and sums no column on its own (CPU)."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import attention, layers
from staleness_grpo.policy.transformer import Policy
from tests.policy.test_transformer import TOY

WIDE = dataclasses.replace(TOY, d_model=32, head_dim=8, dtype="float32", param_dtype="float32")


@pytest.fixture(scope="module")
def gradient_program():
    """Compiles the gradient of a decoder with two layers, for groups with a prompt pass."""
    policy = Policy(WIDE)
    tokens = jnp.zeros((4, 6), jnp.int32), jnp.ones((4, 6), bool), jnp.zeros((4, 8, 17), jnp.int32)

    def total(params):
        return jnp.sum(policy.response_hidden(params, *tokens) ** 2)

    params = policy.init(jax.random.key(0))
    return jax.jit(jax.grad(total)).lower(params).compile().as_text()


def test_cosines_and_sines_are_computed_once_for_each_pass(gradient_program):
    """There are two passes, over the prompts and over the responses, of two layers each."""
    assert len(re.findall(r" cosine\(", gradient_program)) == 2
    assert len(re.findall(r" sine\(", gradient_program)) == 2


def test_the_gradient_of_a_scale_is_a_product(gradient_program):
    """As a sum over rows of [N, G, L, E] it has the shape [E]."""
    assert not re.findall(r"f32\[32\]\S* reduce\(", gradient_program)


def test_rotations_are_the_cosines_and_sines_to_the_last_bit():
    positions = jnp.asarray([[[0, 1, 5, 300]]])
    cos, sin = jax.jit(attention.rotations, static_argnums=1)(positions, WIDE)
    angle = positions[..., None, None] * attention.rotary_frequencies(WIDE)[None, None, None, None]
    np.testing.assert_array_equal(cos, jnp.cos(angle))
    np.testing.assert_array_equal(sin, jnp.sin(angle))


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 5, 8), (0, 8)])
def test_the_gradient_of_a_scale_is_exact(shape):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape), rng.normal(size=shape)
    with jax.enable_x64(True):
        norm = layers.RMSNorm(1e-6, "float64")
        params = {"scale": jnp.asarray(rng.normal(size=8))}
        gradient = jax.grad(lambda p: jnp.sum(norm.apply({"params": p}, x) * weight))(params)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    expected = np.sum((normed * weight).reshape(-1, 8), axis=0)
    np.testing.assert_allclose(gradient["scale"], expected, rtol=1e-12, atol=1e-15)
