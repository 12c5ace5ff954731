"""Compares attention by the TPU's kernel with the decoder's own attention.

On CPU the kernel is interpreted.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.attention import attend
from staleness_grpo.policy.splash import TILE, attend_by_splash, block_size
from staleness_grpo.policy.transformer import Policy
from tests.policy.examples import equations

CONFIG = TransformerConfig(
    vocab_size=4,
    num_layers=1,
    d_model=4,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    d_ff=4,
)


@pytest.mark.parametrize(
    ("length", "prompt_length"),
    [(150, None), (150, 20), (1, 130)],
    ids=["alone", "after_prompts", "one_token"],
)
def test_attention_and_its_gradients_are_those_of_the_plain_one(length, prompt_length):
    """Prompts are unequal, lengths fill no tile or more than one, a key head has two queries."""
    n, g, k, q, h = 2, 2, 2, 2, 16
    rng = np.random.default_rng(0)
    queries, weights = rng.normal(size=(2, n, g, k, length, q, h)).astype(np.float32)
    own = rng.normal(size=(2, n, g, k, length, h)).astype(np.float32)
    causal = np.tril(np.ones((length, length), bool))[None, None]
    if prompt_length is None:  # as prompts are encoded, with padding on the left
        start = np.array([0, 7])[:, None, None, None]
        mask, prefix, prefix_mask = causal & (np.arange(length) >= start), None, None
        # The results of queries that are padding are not defined.
        weights *= np.arange(length)[:, None, None] >= start[..., None, None]
    else:
        prefix = rng.normal(size=(2, n, 1, k, prompt_length, h)).astype(np.float32)
        mask, prefix_mask = causal, np.arange(prompt_length) >= np.array([[0], [7]])

    def total(attention, queries, own, prefix):
        prompt = None if prefix is None else tuple(prefix)
        y = attention(queries, tuple(own), mask, prompt, prefix_mask)
        return jnp.sum(weights * y), weights * y

    def evaluate(attention):
        gradient = jax.grad(lambda *args: total(attention, *args), argnums=(0, 1, 2), has_aux=True)
        return jax.tree.leaves(jax.jit(gradient)(queries, own, prefix))

    for ours, expected in zip(evaluate(attend_by_splash), evaluate(attend), strict=True):
        assert np.abs(expected).max() > 0.1 or length == 1
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "size"), [(128, 128), (256, 256), (384, 384), (640, 128), (1024, 512), (1152, 384)]
)
def test_block_size_divides(length, size):
    assert block_size(length) == size


def test_the_decoder_takes_the_kernel_or_the_blocks():
    """Looks into the program, because results would be the same with either, or with neither.

    No product may score all queries with all keys.
    """
    length = 2 * TILE

    def program(attention):
        policy = Policy(dataclasses.replace(CONFIG, attention=attention))
        params = jax.eval_shape(policy.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return list(equations(jax.make_jaxpr(policy.apply)(params, tokens).jaxpr))

    products = [
        equation.outvars[0].aval.shape
        for equation in program("xla")
        if equation.primitive.name == "dot_general"
    ]
    assert [shape[-1] for shape in products if shape[-1] >= TILE] == [length // 2, length]
    assert not any(shape.count(length) == 2 for shape in products)
    kernels = {
        name: sum(equation.primitive.name == "pallas_call" for equation in program(name))
        for name in ("xla", "splash")
    }
    assert kernels == {"xla": 0, "splash": 1}


@pytest.mark.slow
def test_on_eight_devices_it_is_the_same(run_on_devices):
    pairs = json.loads(run_on_devices("splash_on_mesh").splitlines()[-1])
    assert pairs
    for difference, largest in pairs:
        assert difference < 1e-5 * max(largest, 1)


def test_refuses_a_dtype_that_the_kernel_has_not():
    config = dataclasses.replace(CONFIG, attention="splash")
    words = "dtype=float64: attention=splash computes in float32 or bfloat16: choose one of these"
    with pytest.raises(FieldError, match=words):
        dataclasses.replace(config, dtype="float64")
