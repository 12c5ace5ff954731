"""Masked keys that fill up an axis change no output and no gradient of attention."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import attention

SHAPE = (2, 3, 2, 5)  # N, G, K, H


def reference(q, keys, values, mask):
    """Returns softmax attention in float64, one query at a time, over the keys of its mask."""
    outputs = np.zeros_like(q)
    for n, g, k, place, query in np.ndindex(q.shape[:-1]):
        chosen = np.flatnonzero(mask[n, 0, place])
        scores = keys[n, g, k, chosen] @ q[n, g, k, place, query] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        outputs[n, g, k, place, query] = weights @ values[n, g, k, chosen] / weights.sum()
    return outputs


def inputs(num_keys, num_queries):
    """Draws queries of two heads for each key head, and a causal mask with a hole."""
    rng = np.random.default_rng(num_keys)
    n, g, k, h = SHAPE
    q = rng.normal(size=(n, g, k, num_queries, 2, h))
    keys, values = rng.normal(size=(2, n, g, k, num_keys, h))
    mask = np.tril(np.ones((num_keys, num_keys), bool))[-num_queries:]
    mask = np.broadcast_to(mask, (n, 1, num_queries, num_keys)).copy()
    mask[1, :, :, 0] = num_keys == num_queries == 1  # no row is without a key
    mask[1, :, 0, 0] = True
    return q, keys, values, mask


def attend(q, keys, values, mask):
    return attention.attend(q, (keys, values), mask, None, None)


@pytest.mark.parametrize(("num_keys", "num_queries"), [(9, 9), (9, 4), (8, 8), (3, 1), (131, 2)])
def test_outputs_are_those_of_the_reference(num_keys, num_queries):
    q, keys, values, mask = inputs(num_keys, num_queries)
    with jax.enable_x64(True):
        outputs = attend(q, keys, values, mask)
    expected = reference(q, keys, values, mask)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_unfilled_keys(monkeypatch):
    *arrays, mask = inputs(9, 9)

    def gradient():
        def total(*arrays):
            return jnp.sum(attend(*arrays, mask) ** 3)

        return jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, arrays))

    with jax.enable_x64(True):
        filled = gradient()
        monkeypatch.setattr(attention, "PADDED_KEYS", 0)
        unfilled = gradient()
    for x, y in zip(filled, unfilled, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
        assert np.any(np.asarray(x) != 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keys_behind_the_mask_have_no_weight_however_large_their_scores(dtype):
    q, keys, values, mask = inputs(9, 9)
    mask[:, :, :, 5] = False
    expected = reference(q, keys, values, mask)
    keys[:, :, :, 5] *= 1e9
    with jax.enable_x64(dtype == "float64"):
        arrays = [jnp.asarray(x, dtype) for x in (q, keys, values)]
        outputs, pull = jax.vjp(lambda *arrays: attend(*arrays, mask), *arrays)
        of_keys, of_values = pull(jnp.ones_like(outputs))[1:]
    rtol = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(outputs, expected, rtol=rtol, atol=rtol)
    assert not np.any(np.asarray(of_keys)[:, :, :, 5])
    assert not np.any(np.asarray(of_values)[:, :, :, 5])


@pytest.mark.parametrize(
    ("num_keys", "num_queries", "platform", "filled"),
    [
        (9, 9, "cpu", 16),
        (16, 4, "cpu", 16),
        (128, 4, "cpu", 128),
        (129, 4, "cpu", 129),
        (9, 1, "cpu", 9),
        (9, 9, "tpu", 9),
    ],
)
def test_only_short_axes_of_several_queries_on_cpus_are_filled(
    monkeypatch, num_keys, num_queries, platform, filled
):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    q, keys, values, mask = map(jnp.asarray, inputs(num_keys, num_queries))
    # JAX keeps what it has traced of a function, whatever the platform was.
    program = str(jax.make_jaxpr(lambda *arrays: attend(*arrays))(q, keys, values, mask))
    n, g, k, _ = SHAPE
    exponentials = re.findall(r":f32\[([\d,]+)\] = exp ", program)
    assert exponentials == [f"{n},{g},{k},{num_queries},2,{filled}"]
