"""Computes attention by Splash attention, a TPU kernel of JAX that keeps its scores on the chip."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from staleness_grpo.policy.numerics import after_prompts
from staleness_grpo.runtime.mesh import BATCH_AXES, batch_shards, platform
from staleness_grpo.types import Array

TILE = 128  # positions in a TPU's register; the size of a kernel block is a multiple of TILE
LARGEST_BLOCK = 512  # positions


def block_size(length: int) -> int:
    """Returns the largest block size that divides `length`. `length` is a multiple of `TILE`."""
    return next(size for size in range(LARGEST_BLOCK, 0, -TILE) if length % size == 0)


def attend_by_splash(
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    causal_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Returns the result of `attention.attend` under a causal mask, [N, G, K, L, Q, H].

    The results of the two functions differ by rounding, and for queries that are padding. Every
    response gets a copy of its prompt's keys and values. All lengths are padded to multiples of
    `TILE`. The mask hides later positions and also padding on the left, which the kernel treats as
    a separate segment.

    On a mesh, each device calls the kernel for its own responses and heads. If the mesh, or
    without a mesh the default backend, has no TPU, the kernel is interpreted. Interpreting is slow
    and meant for tests.
    """
    n, g, k, length, _, h = q_NxGxKxLxQxH.shape
    pad_after = -length % TILE
    seen_NxGxL = jnp.broadcast_to(jnp.any(causal_mask, axis=2), (n, g, length))
    segments_NxGxL = jnp.pad(
        seen_NxGxL, ((0, 0), (0, 0), (0, pad_after)), constant_values=True
    ).astype(jnp.int32)
    key_segments_NxGxC = segments_NxGxL
    keys, values = (jnp.pad(x, (*[(0, 0)] * 3, (0, pad_after), (0, 0))) for x in own)
    if prefix is not None:
        assert prefix_mask_NxP is not None, "a prefix needs its mask"
        pad_before = -prefix_mask_NxP.shape[1] % TILE
        before = [jnp.pad(x, (*[(0, 0)] * 3, (pad_before, 0), (0, 0))) for x in prefix]
        keys, values = after_prompts((before[0], before[1]), (keys, values))
        prefix_segments = jnp.pad(prefix_mask_NxP, ((0, 0), (pad_before, 0))).astype(jnp.int32)[
            :, None
        ]
        prefix_segments = jnp.broadcast_to(prefix_segments, (n, g, prefix_segments.shape[-1]))
        key_segments_NxGxC = jnp.concatenate([prefix_segments, segments_NxGxL], axis=2)
    q = (q_NxGxKxLxQxH * h**-0.5).swapaxes(3, 4)
    q_NxGxKxQxLxH = jnp.pad(q, (*[(0, 0)] * 4, (0, pad_after), (0, 0)))

    mesh = jax.sharding.get_abstract_mesh()
    num_queries, padded_length = q_NxGxKxQxLxH.shape[3:5]
    kernel = _make_kernel(num_queries, padded_length, keys.shape[3], interpret=platform() != "tpu")
    if not mesh.empty and mesh.size > 1:
        responses = BATCH_AXES if n % batch_shards(mesh) == 0 else None
        heads = "tensor" if k % mesh.shape["tensor"] == 0 else None
        head_spec, segment_spec = P(responses, None, heads), P(responses)
        kernel = jax.shard_map(
            kernel,
            in_specs=(*[head_spec] * 3, *[segment_spec] * 2),
            out_specs=head_spec,
            check_vma=False,
        )
    y_NxGxKxQxLxH = kernel(q_NxGxKxQxLxH, keys, values, segments_NxGxL, key_segments_NxGxC)
    return y_NxGxKxQxLxH[..., :length, :].swapaxes(3, 4)


def _make_kernel(
    num_heads: int, length: int, num_keys: int, interpret: bool
) -> Callable[..., jax.Array]:
    """Returns the kernel for the `num_heads` query heads of each key/value head.

    The kernel takes queries [N, G, K, Q, L, H], keys and values [N, G, K, C, H], and the segment
    numbers of queries [N, G, L] and of keys [N, G, C]. L and C are multiples of `TILE`.
    """
    mask = splash_attention.CausalMask((length, num_keys), offset=num_keys - length)
    q_block, kv_block = block_size(length), block_size(num_keys)
    blocks = splash_attention.BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        block_q_dq=q_block,
        block_kv_dq=kv_block,
    )
    splash = splash_attention.make_splash_mqa_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads), block_sizes=blocks, interpret=interpret
    )

    def attend_to_kv_head(q, keys, values, segments, key_segments):
        return splash(
            q, keys, values, segment_ids=splash_attention.SegmentIds(segments, key_segments)
        )

    over_heads = jax.vmap(attend_to_kv_head, in_axes=(0, 0, 0, None, None))
    return jax.vmap(jax.vmap(over_heads))
