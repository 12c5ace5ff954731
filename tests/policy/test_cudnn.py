"""The call of cuDNN's attention, computed by XLA here, against the decoder's own attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from staleness_grpo.errors import FieldError
from staleness_grpo.policy import cudnn
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.attention import attend
from staleness_grpo.policy.transformer import Policy

CONFIG = TransformerConfig(
    vocab_size=5, num_layers=2, d_model=8, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=8
)


@pytest.mark.parametrize("prompt_length", [None, 5], ids=["alone", "after_prompts"])
@pytest.mark.parametrize("length", [4, 3])  # odd lengths are filled up
def test_attention_and_its_gradients_are_those_of_the_plain_one(length, prompt_length):
    """Prompts are unequal, and each key head has three queries, whose order shows."""
    n, g, k, q, h = 2, 3, 2, 3, 8
    rng = np.random.default_rng(0)
    queries, weights = rng.normal(size=(2, n, g, k, length, q, h)).astype(np.float32)
    own = rng.normal(size=(2, n, g, k, length, h)).astype(np.float32)
    causal = np.tril(np.ones((length, length), bool))[None, None]
    prefix = prefix_mask = None
    if prompt_length:
        prefix = rng.normal(size=(2, n, 1, k, prompt_length, h)).astype(np.float32)
        prefix_mask = np.arange(prompt_length) >= np.array([[0], [3]])

    def total(attention, queries, own, prefix):
        prompt = None if prefix is None else tuple(prefix)
        y = attention(queries, tuple(own), causal, prompt, prefix_mask)
        return jnp.sum(weights * y), y

    def evaluate(attention):
        gradient = jax.grad(lambda *args: total(attention, *args), argnums=(0, 1, 2), has_aux=True)
        return jax.tree.leaves(jax.jit(gradient)(queries, own, prefix))

    for ours, expected in zip(evaluate(cudnn.attend_by_cudnn), evaluate(attend), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)  # float32 sums


def test_the_decoder_takes_it_for_prompts_and_responses(monkeypatch):
    plain = Policy(dataclasses.replace(CONFIG, dtype="bfloat16"))
    fused = Policy(dataclasses.replace(CONFIG, dtype="bfloat16", attention="cudnn"))
    params = jax.jit(plain.init)(jax.random.key(0))
    prompts = np.array([[3, 1, 2], [0, 4, 1]], np.int32)
    mask = np.array([[True] * 3, [False, True, True]])
    tokens = np.random.default_rng(0).integers(0, 5, (2, 2, 4)).astype(np.int32)
    calls, attention = [], jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *a, **k: (calls.append(a), attention(*a, **k))[1]
    )
    found = [
        np.asarray(jax.jit(policy.response_hidden)(params, prompts, mask, tokens), np.float32)
        for policy in (plain, fused)
    ]
    assert len(calls) == 2 * CONFIG.num_layers  # of prompts and of responses, in `fused` alone
    # bfloat16 has 8 bits: the results differ by its rounding, and would by much more elsewhere.
    np.testing.assert_allclose(found[0], found[1], atol=0.06)
    assert np.abs(found[0]).max() > 1


@pytest.mark.parametrize("prompt_length", [None, 5, 6])
@pytest.mark.parametrize("length", [3, 4])
def test_a_gpu_takes_the_lengths_with_gradients(length, prompt_length, monkeypatch):
    """JAX's own checks for the kernel run here, as if there were a GPU. Nothing is computed."""
    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 92000)
    for check, answer in (
        ("check_compute_capability", True),
        ("is_cuda_compute_capability_equal", False),
    ):
        monkeypatch.setattr(fused_attention_stablehlo, check, lambda *args, x=answer: x)
    queries = jnp.zeros((2, 3, 2, length, 2, 8), jnp.bfloat16)
    own = jnp.zeros((2, 2, 3, 2, length, 8), jnp.bfloat16)
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    prefix = prefix_mask = None
    if prompt_length:
        prefix = tuple(jnp.zeros((2, 2, 1, 2, prompt_length, 8), jnp.bfloat16))
        prefix_mask = jnp.ones((2, prompt_length), bool)

    def total(queries):
        y = cudnn.attend_by_cudnn(queries, tuple(own), causal, prefix, prefix_mask)
        assert y.shape == queries.shape
        return jnp.sum(y.astype(jnp.float32))

    jax.eval_shape(jax.grad(total), queries)

    def plain(queries):
        x = queries[:, 0, 0]
        mask = jnp.ones((1, 1, length, length), bool)
        y = jax.nn.dot_product_attention(x, x, x, mask=mask, implementation="cudnn")
        return jnp.sum(y.astype(jnp.float32))

    if length % 2:  # the checks do run
        with pytest.raises(NotImplementedError, match="sequence length"):
            jax.eval_shape(jax.grad(plain), queries)


def test_only_a_gpu_gets_the_kernel(monkeypatch):
    asked = []

    def record(query, *args, implementation, **kwargs):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    x = np.zeros((1, 1, 1, 2, 1, 8), np.float32)
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(cudnn, "platform", lambda platform=platform: platform)
        mask = np.ones((1, 1, 2, 2), bool)
        cudnn.attend_by_cudnn(x, (x[..., 0, :], x[..., 0, :]), mask, None, None)
    assert asked == ["xla", "cudnn"]


def test_refuses_a_dtype_that_the_kernel_has_not():
    with pytest.raises(FieldError, match="^dtype=float32: attention=cudnn computes in bfloat16: "):
        dataclasses.replace(CONFIG, attention="cudnn")
