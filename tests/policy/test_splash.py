"""The decoder with attention by the TPU's kernel, interpreted on CPU, against its own attention."""

import dataclasses
import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import transformer
from staleness_grpo.policy.splash import attend_by_splash, block_size
from tests.policy.test_logprobs import equations


@pytest.mark.parametrize(
    ("length", "prompt_length"), [(150, None), (150, 20), (1, 130)], ids=["alone", "after_prompts", "one_token"]
)
def test_attention_and_its_gradients_are_those_of_the_plain_one(length, prompt_length):
    """Unequal prompts; lengths that fill no tile, and more than one; two query heads to a key head."""
    n, g, k, q, h = 2, 2, 2, 2, 16
    rng = np.random.default_rng(0)
    queries, weights = rng.normal(size=(2, n, g, k, length, q, h)).astype(np.float32)
    own = rng.normal(size=(2, n, g, k, length, h)).astype(np.float32)
    causal = np.tril(np.ones((length, length), bool))[None, None]
    if prompt_length is None:  # as prompts are encoded: padding on the left of the own positions
        start = np.array([0, 7])[:, None, None, None]
        mask, prefix, prefix_mask = causal & (np.arange(length) >= start), None, None
        weights *= np.arange(length)[:, None, None] >= start[..., None, None]  # what padding attends to is not defined
    else:
        prefix = rng.normal(size=(2, n, 1, k, prompt_length, h)).astype(np.float32)
        mask, prefix_mask = causal, np.arange(prompt_length) >= np.array([[0], [7]])

    def total(attend, queries, own, prefix):
        y = attend(queries, tuple(own), mask, prefix if prefix is None else tuple(prefix), prefix_mask)
        return jnp.sum(weights * y), weights * y

    def evaluate(attend):
        gradient = jax.grad(lambda *args: total(attend, *args), argnums=(0, 1, 2), has_aux=True)
        return jax.tree.leaves(jax.jit(gradient)(queries, own, prefix))

    for ours, expected in zip(evaluate(attend_by_splash), evaluate(transformer.attend), strict=True):
        assert np.abs(expected).max() > 0.1 or length == 1
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("length", "size"), [(128, 128), (256, 256), (384, 384), (640, 128), (1024, 512), (1152, 384)])
def test_block_size_divides(length, size):
    assert block_size(length) == size


def test_the_decoder_takes_the_kernel_or_the_blocks():
    """And no score of all queries with all keys: results alone would be the same with either, or neither."""
    config = transformer.TransformerConfig(
        vocab_size=4, num_layers=1, d_model=4, num_heads=1, num_kv_heads=1, head_dim=4, d_ff=4
    )
    length = 2 * transformer.TILE

    def parts(attention):
        policy = transformer.Policy(dataclasses.replace(config, attention=attention))
        params = jax.eval_shape(policy.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return list(equations(jax.make_jaxpr(policy.apply)(params, tokens).jaxpr))

    products = [e.outvars[0].aval.shape for e in parts("xla") if e.primitive.name == "dot_general"]
    assert [shape[-1] for shape in products if shape[-1] >= transformer.TILE] == [length // 2, length]
    assert not any(shape.count(length) == 2 for shape in products)
    kernels = {name: sum(e.primitive.name == "pallas_call" for e in parts(name)) for name in transformer.ATTENTION}
    assert kernels == {"xla": 0, "splash": 1}


MESH = textwrap.dedent(
    """
    import dataclasses, json, jax, jax.numpy as jnp, numpy as np
    from staleness_grpo import mesh as mesh_lib
    from staleness_grpo.policy.transformer import Policy, TransformerConfig

    heads = dict(num_heads=4, num_kv_heads=2, head_dim=8)
    config = TransformerConfig(vocab_size=16, num_layers=1, d_model=16, d_ff=16, **heads)
    rng = np.random.default_rng(0)
    prompts, responses = rng.integers(0, 16, (4, 5)), rng.integers(0, 16, (4, 2, 6))
    mask = np.arange(5) >= rng.integers(0, 5, (4, 1))
    params = jax.jit(Policy(config).init)(jax.random.key(0))

    def evaluate(attention, mesh):
        policy = Policy(dataclasses.replace(config, attention=attention))
        def total(params):
            return jnp.sum(jnp.sin(policy.response_logits(params, prompts, mask, responses)))
        shardings = mesh_lib.parameter_shardings(params, mesh)
        with jax.set_mesh(mesh):
            compiled = jax.jit(jax.value_and_grad(total)).lower(jax.device_put(params, shardings)).compile()
            return [np.asarray(x) for x in jax.tree.leaves(compiled(jax.device_put(params, shardings)))]

    one = evaluate("xla", mesh_lib.make_mesh())
    eight = evaluate("splash", mesh_lib.make_mesh(data=2, fsdp=2, tensor=2))
    print(json.dumps([[float(np.abs(a - b).max()), float(np.abs(a).max())] for a, b in zip(one, eight)]))
    """
)


def test_on_eight_devices_it_is_the_same(run_on_devices):
    for difference, largest in json.loads(run_on_devices(MESH, 8).splitlines()[-1]):
        assert difference < 1e-5 * max(largest, 1)


def test_refuses_a_dtype_that_the_kernel_has_not():
    config = transformer.TransformerConfig(
        vocab_size=4, num_layers=1, d_model=4, num_heads=1, num_kv_heads=1, head_dim=4, d_ff=4, attention="splash"
    )
    with pytest.raises(ValueError, match="float32 or bfloat16, not dtype='float64'"):
        dataclasses.replace(config, dtype="float64")
