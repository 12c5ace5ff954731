"""Computes rotary positions, and softmax attention to a response's own keys and its prompt's keys.

The functions share these arguments:

  own: (keys, values) of the responses, each [N, G, K, C, H].
  own_mask: [N or 1, G or 1, L, C], True where a query attends to a key.
  prefix: (keys, values) of the prompts, each [N, 1, K, P, H]; None without prompts.
  prefix_mask_NxP: False on the padding of the prompts; None without prompts.
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
from staleness_grpo.runtime.mesh import platform
from staleness_grpo.types import Array

MASKED_SCORE = -1e30  # finite, because a row of -inf scores alone would give NaN
# XLA on CPU finds its way in an array by divisions, which are slow if an axis is odd. So up to
# PADDED_KEYS keys are filled up to a multiple of KEY_TILE: see docs/log/2026-11-30-even-keys.md.
KEY_TILE, PADDED_KEYS = 8, 128
# `attend_causally` splits the queries into at most this many blocks of a multiple of `TILE`.
CAUSAL_BLOCKS = 4


def rotary_frequencies(config: TransformerConfig) -> jax.Array:
    """Returns the radians per position of each feature pair, [H/2] in at least float32."""
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


def rotations(positions_NxGxL: Array, config: TransformerConfig) -> tuple[jax.Array, jax.Array]:
    """Returns the cosines and sines [N, G, L, 1, H/2] by which `rotate` turns the features."""
    frequency = rotary_frequencies(config)
    angle = positions_NxGxL[..., None, None].astype(frequency.dtype) * leading_axes(frequency, 5)
    # XLA fuses cosines and sines into each of their users, which then compute them again for every
    # head, layer and pass. It cannot fuse the result of a product, here with the identity.
    both = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    identity = jnp.eye(both.shape[-1], dtype=both.dtype)
    both = jnp.matmul(both, identity, precision=jax.lax.Precision.HIGHEST)
    cos, sin = jnp.split(both, 2, axis=-1)
    return cos, sin


def rotate(x_NxGxLxOxH: Array, cos: Array, sin: Array) -> jax.Array:
    """Rotates the features of O heads by their positions (rotary position embedding).

    Features x_i and x_{i + H/2} form a pair. This is the half-split layout of the Hugging Face
    checkpoints.
    """
    x1, x2 = jnp.split(x_NxGxLxOxH.astype(cos.dtype), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x_NxGxLxOxH.dtype)


def attend(
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    own_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Returns attention to a response's own keys and its prompt's keys, [N, G, K, L, Q, H].

    The G responses share the keys and values of their prompt, which are never repeated in memory.
    The scores of own and prompt keys have one softmax without being concatenated:

      - Their common maximum is subtracted before both are exponentiated.
      - The summed outputs are divided by the common sum of the weights.
    """
    n, group_size, k, length, q_per_kv, h = q_NxGxKxLxQxH.shape
    own, own_mask = _filled_up(own, own_mask)
    dtype = q_NxGxKxLxQxH.dtype
    score_dtype = at_least_float32(dtype)
    q = q_NxGxKxLxQxH * h**-0.5

    def over_own(product: str, x: Array, y: Array) -> jax.Array:
        return jnp.einsum(product, x, y, preferred_element_type=score_dtype)

    # O is the last axis of x: the features of queries, or the prompt positions of weights.
    def over_prefix(product: str, x_NxGxKxLxQxO: Array, y_Nx1xKxPxH: Array) -> jax.Array:
        # The whole group goes into the rows of one matrix (m in the einsum string). XLA on CPU does
        # not implement the products with separate group axes for bfloat16.
        rows = x_NxGxKxLxQxO.swapaxes(1, 2).reshape(n, k, -1, x_NxGxKxLxQxO.shape[-1])
        z = jnp.einsum(product, rows, y_Nx1xKxPxH[:, 0], preferred_element_type=score_dtype)
        return z.reshape(n, k, group_size, length, q_per_kv, z.shape[-1]).swapaxes(1, 2)

    # One entry for the own keys and one for the prompt's keys. Each entry has the function that
    # multiplies, the einsum strings for scores and for outputs, (keys, values), and the mask.
    parts: list[tuple[Callable[..., jax.Array], tuple[str, str], tuple[Array, Array], Array]] = [
        (
            over_own,
            ("ngklqh,ngkch->ngklqc", "ngklqc,ngkch->ngklqh"),
            own,
            own_mask[:, :, None, :, None],
        )
    ]
    if prefix is not None:
        assert prefix_mask_NxP is not None, "a prefix needs its mask"
        mask = prefix_mask_NxP[:, None, None, None, None]
        parts.append((over_prefix, ("nkmh,nkph->nkmp", "nkmp,nkph->nkmh"), prefix, mask))
    # The sum has the weight 0, as the mask alone would, and a shorter derivative than a choice
    # between score and mask.
    scores = [
        multiply(to_scores, q, keys) + jnp.where(mask, 0, MASKED_SCORE).astype(score_dtype)
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


def _filled_up(own: tuple[Array, Array], own_mask: Array) -> tuple[tuple[Array, Array], Array]:
    """Adds masked keys up to a multiple of KEY_TILE, on CPUs and where several queries share them.

    Masked keys have the weight 0.
    """
    num_queries, num_keys = own_mask.shape[2:]
    extra = -num_keys % KEY_TILE
    if extra == 0 or num_queries == 1 or num_keys > PADDED_KEYS or platform() != "cpu":
        return own, own_mask
    keys, values = (jnp.pad(x, ((0, 0),) * 3 + ((0, extra), (0, 0))) for x in own)
    return (keys, values), jnp.pad(own_mask, ((0, 0),) * 3 + ((0, extra),))


def attend_causally(
    attention: Callable[..., jax.Array],
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    causal_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Applies `attention` to one block of queries after another, with the keys up to its end.

    The causal mask hides about half of the L x L products of queries and keys. With b blocks, the
    fraction (b + 1) / 2b of the products is computed: 5/8 with 4 blocks.

    Args:
      attention: `attend`, or a function with the same arguments.
      q_NxGxKxLxQxH: the queries of the last L of C positions.
      causal_mask: [N or 1, G or 1, L, C], False for keys that come after the query.
    """
    length = q_NxGxKxLxQxH.shape[3]
    first = own[0].shape[3] - length  # the position of the first query
    size = TILE * math.ceil(length / (TILE * CAUSAL_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        keys, values = (x[:, :, :, : first + end] for x in own)
        q, mask = q_NxGxKxLxQxH[:, :, :, start:end], causal_mask[:, :, start:end, : first + end]
        blocks.append(attention(q, (keys, values), mask, prefix, prefix_mask_NxP))
    return jnp.concatenate(blocks, axis=3)
