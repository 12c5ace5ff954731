"""Computes rotary positions, and softmax attention over a response's own keys and its prompt's.

Here `own` is (keys, values) [N, G, K, C, H] of the responses, and `own_mask` [N or 1, G or 1, L, C]
is True where a query sees a key. `prefix` is (keys, values) [N, 1, K, P, H] of the prompts, and
`prefix_mask_NxP` is False on their padding. Without prompts both are None.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.numerics import at_least_float32, leading_axes
from staleness_grpo.policy.splash import TILE
from staleness_grpo.types import Array

MASKED_SCORE = -1e30  # finite, so that a row without a single visible key stays free of NaN
# `attend_as_one` takes a group with at most this many response positions. On a CPU core it saves
# 30 % of the attention's time at 24 and 56 positions, and doubles it at 120 (docs/log/).
ONE_PRODUCT_POSITIONS = 64
# `attend_causally` cuts the queries into at most this many blocks, each a multiple of `TILE`.
CAUSAL_BLOCKS = 4


def rotary_frequencies(config: TransformerConfig) -> jax.Array:
    """Returns the angle per position of each feature pair, [H/2] in float32 or better."""
    dtype = at_least_float32(config.dtype)
    exponent = jnp.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim
    frequency = 1.0 / jnp.asarray(config.rope_theta, dtype) ** exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * jnp.pi / frequency
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    ramp = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - ramp) * frequency / scaling.factor + ramp * frequency
    return jnp.where(
        wavelength > low,
        frequency / scaling.factor,
        jnp.where(wavelength < high, frequency, blended),
    )


def rotate(x_NxGxLxOxH: Array, positions_NxGxL: Array, config: TransformerConfig) -> jax.Array:
    """Turns the features of O heads by their positions (rotary position embedding).

    A pair is (x_i, x_{i + H/2}), the half-split layout of the Hugging Face checkpoints.
    """
    frequency = rotary_frequencies(config)
    angle = positions_NxGxL[..., None, None].astype(frequency.dtype) * leading_axes(frequency, 5)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x1, x2 = jnp.split(x_NxGxLxOxH.astype(frequency.dtype), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x_NxGxLxOxH.dtype)


def attend(
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    own_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Returns softmax attention over a response's own keys and its prompt's, [N, G, K, L, Q, H].

    The G responses share their prompt's keys and values, which are never repeated in memory. Own
    and prompt scores are exponentiated under their common maximum. The outputs are divided by the
    common sum at the end, so that the scores are never concatenated. Groups of very short responses
    go through `attend_as_one`.
    """
    n, group_size, k, length, q_per_kv, h = q_NxGxKxLxQxH.shape
    if prefix is not None:
        assert prefix_mask_NxP is not None, "prompts come with their mask"
        if min(group_size, length) > 1 and group_size * length <= ONE_PRODUCT_POSITIONS:
            return attend_as_one(q_NxGxKxLxQxH, own, own_mask, prefix, prefix_mask_NxP)
    dtype = q_NxGxKxLxQxH.dtype
    score_dtype = at_least_float32(dtype)
    q = q_NxGxKxLxQxH * h**-0.5

    def over_own(product: str, x: Array, y: Array) -> jax.Array:
        return jnp.einsum(product, x, y, preferred_element_type=score_dtype)

    # Here O is the features of queries, or the prompt positions of weights.
    def over_prefix(product: str, x_NxGxKxLxQxO: Array, y_Nx1xKxPxH: Array) -> jax.Array:
        # As a product of two matrices, with the whole group in the rows (m in the product's name).
        # For bfloat16, XLA on CPU has no program for the other products.
        rows = x_NxGxKxLxQxO.swapaxes(1, 2).reshape(n, k, -1, x_NxGxKxLxQxO.shape[-1])
        z = jnp.einsum(product, rows, y_Nx1xKxPxH[:, 0], preferred_element_type=score_dtype)
        return z.reshape(n, k, group_size, length, q_per_kv, z.shape[-1]).swapaxes(1, 2)

    # For own keys and for the prompt's: the function that multiplies, the products that make scores
    # and outputs, keys, values, and the mask.
    parts: list[tuple[Callable[..., jax.Array], tuple[str, str], tuple[Array, Array], Array]] = [
        (
            over_own,
            ("ngklqh,ngkch->ngklqc", "ngklqc,ngkch->ngklqh"),
            own,
            own_mask[:, :, None, :, None],
        )
    ]
    if prefix is not None:
        assert prefix_mask_NxP is not None
        mask = prefix_mask_NxP[:, None, None, None, None]
        parts.append((over_prefix, ("nkmh,nkph->nkmp", "nkmp,nkph->nkmh"), prefix, mask))
    scores = [
        jnp.where(mask, multiply(to_scores, q, keys), MASKED_SCORE)
        for multiply, (to_scores, _), (keys, _), mask in parts
    ]
    highest = functools.reduce(
        jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in scores]
    )
    weights = [jnp.exp(part - jax.lax.stop_gradient(highest)) for part in scores]
    total: Any = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
    y: Any = sum(
        multiply(to_outputs, weight.astype(dtype), values)
        for weight, (multiply, (_, to_outputs), (_, values), _) in zip(weights, parts, strict=True)
    )
    return (y / total).astype(dtype)


def attend_as_one(
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    own_mask: Array,
    prefix: tuple[Array, Array],
    prefix_mask_NxP: Array,
) -> jax.Array:
    """Returns what `attend` returns, with the responses of a group joined to one long response.

    A mask keeps each response to its own keys. One product of G L queries with P + G C keys, most
    of them masked, replaces G products of L with C. XLA on CPU runs batched products one by one.
    For very short responses such a call costs more than the product.
    """
    n, g, k, length, q, h = q_NxGxKxLxQxH.shape
    c = own[0].shape[3]

    def join(own_NxGxKxCxH: Array, prefix_Nx1xKxPxH: Array) -> jax.Array:
        joined = own_NxGxKxCxH.swapaxes(1, 2).reshape(n, 1, k, g * c, h)
        return jnp.concatenate([prefix_Nx1xKxPxH, joined], axis=3)

    same_response = jnp.eye(g, dtype=bool)[None, :, None, :, None]
    mask = jnp.broadcast_to(own_mask[:, :, :, None] & same_response, (n, g, length, g, c))
    mask = mask.reshape(n, g * length, g * c)
    prefix_mask = jnp.broadcast_to(
        prefix_mask_NxP[:, None], (n, g * length, prefix_mask_NxP.shape[1])
    )
    queries = q_NxGxKxLxQxH.swapaxes(1, 2).reshape(n, 1, k, g * length, q, h)
    keys, values = (join(*pair) for pair in zip(own, prefix, strict=True))
    joined_mask = jnp.concatenate([prefix_mask, mask], axis=-1)[:, None]
    y = attend(queries, (keys, values), joined_mask, None, None)
    return y.reshape(n, k, g, length, q, h).swapaxes(1, 2)


def attend_causally(
    attention: Callable[..., jax.Array],
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    causal_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Applies `attention` to blocks of queries, each with the keys up to the block's end.

    The mask leaves half of the L x L products. Of all of them, b blocks compute the share
    (b + 1) / 2b, which is 5/8 for 4 blocks.

    Args:
      attention: `attend`, or a function with its arguments.
      causal_mask: [N or 1, G or 1, L, L], False above the diagonal.
    """
    length = q_NxGxKxLxQxH.shape[3]
    size = TILE * math.ceil(length / (TILE * CAUSAL_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        keys, values = (x[:, :, :, :end] for x in own)
        q, mask = q_NxGxKxLxQxH[:, :, :, start:end], causal_mask[:, :, start:end, :end]
        blocks.append(attention(q, (keys, values), mask, prefix, prefix_mask_NxP))
    return jnp.concatenate(blocks, axis=3)
