"""Compares the decoder with an independent NumPy one, and shared prompts with plain sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import attention, joined, layers
from staleness_grpo.policy.architecture import RopeScaling, TransformerConfig
from staleness_grpo.policy.transformer import Policy
from tests.policy import numpy_transformer
from tests.policy.examples import random_params

TOY = TransformerConfig(
    vocab_size=11,
    num_layers=2,
    d_model=16,
    num_heads=4,
    num_kv_heads=4,
    head_dim=4,
    d_ff=24,
    dtype="float64",
    param_dtype="float64",
)
FAMILY = {
    "toy": TOY,
    "llama": dataclasses.replace(
        TOY,
        num_kv_heads=2,
        tie_embeddings=True,
        head_dim=8,
        rope_scaling=RopeScaling(4.0, 1.0, 4.0, 8),
    ),
    "qwen2": dataclasses.replace(TOY, num_kv_heads=1, qkv_bias=True, rope_theta=1e6),
    "qwen3": dataclasses.replace(TOY, num_kv_heads=2, qk_norm=True, norm_epsilon=1e-6, head_dim=6),
}


@pytest.mark.parametrize("name", FAMILY)
def test_logits_match_an_independent_numpy_decoder(name):
    with jax.enable_x64(True):
        policy = Policy(FAMILY[name])
        params = random_params(policy)
        # Longer than 8, the boundary of the RoPE scaling.
        tokens = np.random.default_rng(1).integers(0, 11, (2, 13))
        ours = jax.jit(policy.apply)(params, tokens)
    host = jax.device_get(params)
    theirs = [numpy_transformer.logits(FAMILY[name], host, row) for row in tokens]
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.fixture(params=[64, -1], ids=["joined", "apart"])
def either_way(request, monkeypatch):
    """Encodes short groups together with their prompts, or apart from them."""
    monkeypatch.setattr(joined, "JOINED_POSITIONS", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", FAMILY)
def test_shared_prompts_and_padding_change_nothing(name):
    """Left-padded groups get the logits of plain causal sequences, prompt and response together."""
    rng = np.random.default_rng(2)
    lengths, prompt_length, group_size, response_length = [1, 3, 5], 5, 2, 4
    with jax.enable_x64(True):
        policy = Policy(FAMILY[name])
        params = random_params(policy)
        prompts = rng.integers(0, 11, (3, prompt_length))
        mask = np.arange(prompt_length) >= prompt_length - np.array(lengths)[:, None]
        responses = rng.integers(0, 11, (3, group_size, response_length))
        ours = jax.jit(lambda *args: policy.response_logits(*args))(
            params, prompts, mask, responses
        )
        # Plain sequences are filled up on the right, which a causal decoder does not see.
        sequences = np.zeros((3, group_size, prompt_length + response_length), int)
        for n, length in enumerate(lengths):
            sequences[n, :, :length] = prompts[n, -length:]
            sequences[n, :, length : length + response_length] = responses[n]
        plain = jax.jit(policy.apply)(params, sequences.reshape(3 * group_size, -1)).reshape(
            3, group_size, -1, 11
        )
    for n, length in enumerate(lengths):
        expected = plain[n, :, length - 1 : length - 1 + response_length]
        np.testing.assert_allclose(ours[n], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("first", [0, 2], ids=["all_queries", "last_queries"])
@pytest.mark.parametrize("tile", [128, 1], ids=["at_once", "in_blocks"])
def test_attention_over_prompt_and_response_matches_a_softmax_in_numpy(tile, first, monkeypatch):
    """`first` is the number of own positions that have keys but no query."""
    monkeypatch.setattr(attention, "TILE", tile)
    n, g, k, length, q, h, p = 2, 3, 2, 4, 2, 6, 5
    rng = np.random.default_rng(4)
    queries, weights = rng.normal(size=(2, n, g, k, length, q, h))
    own = rng.normal(size=(2, n, g, k, first + length, h))
    prefix = rng.normal(size=(2, n, 1, k, p, h))
    prefix_mask = np.arange(p) >= np.array([[0], [2]])
    own_mask = np.tril(np.ones((length, first + length), bool), first)[None, None]

    def expected(queries, own, prefix):
        y = np.zeros_like(queries)
        for place in np.ndindex(n, g, k, length, q):
            a, b, c, t, _ = place
            keys, values = (
                np.concatenate([shared[a, 0, c, prefix_mask[a]], x[a, b, c, : first + t + 1]])
                for shared, x in zip(prefix, own, strict=True)
            )
            scores = np.exp(keys @ queries[place] / np.sqrt(h))
            y[place] = scores @ values / scores.sum()
        return y

    with jax.enable_x64(True):

        def total(queries, own, prefix):
            y = attention.attend_causally(
                attention.attend,
                queries,
                tuple(own),
                jnp.asarray(own_mask),
                tuple(prefix),
                jnp.asarray(prefix_mask),
            )
            return jnp.sum(y * weights), y

        gradients, ours = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
            queries, own, prefix
        )
    np.testing.assert_allclose(ours, expected(queries, own, prefix), rtol=1e-12, atol=1e-13)
    # Gradients along one random direction each, against central differences.
    for i, gradient in enumerate(gradients):
        direction, step = rng.normal(size=gradient.shape), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [queries, own, prefix]
            moved[i] = moved[i] + sign * step * direction
            ends.append(np.sum(weights * expected(*moved)))
        # Rounding leaves an error of 1e-16 / 1e-6 of a sum of order 10, truncation a smaller one.
        np.testing.assert_allclose(
            np.sum(np.asarray(gradient) * direction), (ends[0] - ends[1]) / 2e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("length", "ends"), [(9, [3, 6, 9]), (8, [2, 4, 6, 8]), (3, [1, 2, 3]), (1, [1])]
)
def test_a_block_of_queries_is_not_multiplied_with_later_keys(length, ends, monkeypatch):
    """A NaN among the values reaches every query that it is multiplied with, even at weight 0."""
    monkeypatch.setattr(attention, "TILE", 1)
    x = np.ones((1, 1, 1, length, 1, 2), np.float32)
    mask = np.tril(np.ones((length, length), bool))[None, None]

    @jax.jit
    def attended(values):
        keys = (jnp.asarray(x[..., 0, :]), values)
        return attention.attend_causally(attention.attend, jnp.asarray(x), keys, mask, None, None)

    for position in range(length):
        values = x[..., 0, :].copy()
        values[:, :, :, position] = np.nan
        y = attended(values)
        reached = [min(end for end in ends if end > query) > position for query in range(length)]
        np.testing.assert_array_equal(np.isnan(y[0, 0, 0, :, 0, 0]), reached)


@pytest.mark.usefixtures("either_way")
def test_gradients_through_shared_prompts_match_plain_sequences():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        policy = Policy(FAMILY["llama"])
        params = random_params(policy)
        prompts, responses = (
            jnp.asarray(rng.integers(0, 11, (2, 3))),
            jnp.asarray(rng.integers(0, 11, (2, 3, 4))),
        )
        weights = jnp.asarray(rng.normal(size=(2, 3, 4, 11)))
        mask = jnp.ones((2, 3), bool)

        def shared(params):
            return jnp.sum(weights * policy.response_logits(params, prompts, mask, responses))

        def plain(params):
            tokens = jnp.concatenate([jnp.repeat(prompts[:, None], 3, axis=1), responses], axis=-1)
            logits = policy.apply(params, tokens.reshape(6, 7)).reshape(2, 3, 7, 11)
            return jnp.sum(weights * logits[:, :, 2:-1])

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11),
            jax.jit(jax.grad(shared))(params),
            jax.jit(jax.grad(plain))(params),
        )


def test_bfloat16_activations_keep_float32_logits():
    policy = Policy(dataclasses.replace(TOY, dtype="bfloat16", param_dtype="float32"))
    params = jax.jit(policy.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = np.zeros((1, 3), np.int32)
    logits = jax.jit(policy.apply)(params, tokens)
    assert logits.dtype == jnp.float32
    exact = jax.jit(Policy(dataclasses.replace(policy.config, dtype="float32")).apply)(
        params, tokens
    )
    # bfloat16 has 8 bits, which is 0.4 % of logits of order 1.
    np.testing.assert_allclose(logits, exact, atol=0.1)


def test_scores_and_norms_of_bfloat16_are_float32():
    """Each result is rounded once. A sum or an exponential in 8 bits would be off by more."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(256, 64)) + 1, jnp.bfloat16)
    norm = layers.RMSNorm(1e-5, "float32")
    exact = np.asarray(x, float) / np.sqrt(
        np.mean(np.asarray(x, float) ** 2, axis=-1, keepdims=True) + 1e-5
    )
    y = norm.apply({"params": {"scale": jnp.ones(64)}}, x)
    np.testing.assert_allclose(np.asarray(y, float), exact, rtol=1.01 * 2**-8)

    queries, keys = (
        jnp.asarray(4 * rng.normal(size=(1, 1, 1, 32, 16)), jnp.bfloat16) for _ in range(2)
    )
    # With these values, y is the share of the first half less that of the second.
    values = jnp.ones_like(keys).at[..., 16:, :].set(-1.0)
    y = attention.attend(
        queries[:, :, :, :, None], (keys, values), jnp.ones((1, 1, 32, 32), bool), None, None
    )
    scores = np.exp(np.asarray(queries, float)[0, 0, 0] @ np.asarray(keys, float)[0, 0, 0].T / 4)
    exact = (scores[:, :16].sum(axis=1) - scores[:, 16:].sum(axis=1)) / scores.sum(axis=1)
    assert np.abs(scores).max() > 1e6
    np.testing.assert_allclose(np.asarray(y, float)[0, 0, 0, :, 0, 0], exact, atol=2 * 2**-8)


@pytest.mark.parametrize(
    ("num_prompts", "group_size", "length"),
    [
        pytest.param(2, 3, 30, marks=pytest.mark.slow),
        pytest.param(3, 1, 5, marks=pytest.mark.slow),
        (2, 3, 4),
    ],
)
def test_gradients_of_several_prompts_in_bfloat16(num_prompts, group_size, length):
    """The decoder needs none of the products of bfloat16 that XLA on CPU has no program for."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 11, (num_prompts, 5))
    responses = rng.integers(0, 11, (num_prompts, group_size, length))
    weights = jnp.asarray(rng.normal(size=(*responses.shape, 11)), jnp.float32)

    def gradient(dtype):
        policy = Policy(dataclasses.replace(FAMILY["llama"], dtype=dtype, param_dtype="float32"))
        params = jax.jit(policy.init)(jax.random.key(0))
        mask = np.ones(prompts.shape, bool)

        def total(params):
            return jnp.sum(weights * policy.response_logits(params, prompts, mask, responses))

        return np.concatenate(
            [leaf.ravel() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params))]
        )

    half, exact = gradient("bfloat16"), gradient("float32")
    cosine = half @ exact / np.sqrt((half @ half) * (exact @ exact))
    assert cosine > 0.999  # with 8 bits each entry is off by about 1 %, at random


@pytest.mark.parametrize("wrong", [dict(num_kv_heads=3), dict(head_dim=3)])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(TOY, **wrong)
