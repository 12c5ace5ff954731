"""Attention by JAX's own TPU kernel, Splash attention, whose scores never leave the chip's fast memory.

The letters are those of `transformer`.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from staleness_grpo.mesh import BATCH, batch_shards
from staleness_grpo.types import Array

TILE = 128  # positions: of a TPU's registers, which the kernel's blocks are multiples of
LARGEST_BLOCK = 512
DTYPES = ("float32", "bfloat16")


def block_size(length: int) -> int:
    """The largest block that divides `length`, a multiple of `TILE`."""
    return next(size for size in range(LARGEST_BLOCK, 0, -TILE) if length % size == 0)


def attend_by_splash(
    q_NxGxKxLxQxH: Array, own: tuple, causal_mask: Array, prefix: tuple | None, prefix_mask: Array | None
) -> jax.Array:
    """`transformer.attend` under a causal mask, [N, G, K, L, Q, H]: the same but for rounding and queries of padding.

    Every response gets a copy of its prompt's keys and values, and all are filled up to tiles. What the mask hides
    beside later positions, padding on the left, is told to the kernel as a segment of its own. On a mesh each device
    calls the kernel for its responses and heads. Where the mesh in use has no TPU the kernel is interpreted, which is
    for tests: it is slow.
    """
    n, g, k, length, _, h = q_NxGxKxLxQxH.shape
    after = -length % TILE
    seen_NxGxL = jnp.broadcast_to(jnp.any(causal_mask, axis=2), (n, g, length))
    segments_NxGxL = jnp.pad(seen_NxGxL, ((0, 0), (0, 0), (0, after)), constant_values=True).astype(jnp.int32)
    key_segments = segments_NxGxL
    keys, values = (jnp.pad(x, (*[(0, 0)] * 3, (0, after), (0, 0))) for x in own)
    if prefix is not None:
        before = -prefix_mask.shape[1] % TILE
        padded = [jnp.pad(x, (*[(0, 0)] * 3, (before, 0), (0, 0))) for x in prefix]
        copies = [jnp.broadcast_to(x, (n, g, *x.shape[2:])) for x in padded]
        keys, values = (jnp.concatenate(pair, axis=3) for pair in zip(copies, (keys, values), strict=True))
        prefix_segments = jnp.pad(prefix_mask, ((0, 0), (before, 0))).astype(jnp.int32)[:, None]
        prefix_segments = jnp.broadcast_to(prefix_segments, (n, g, prefix_segments.shape[-1]))
        key_segments = jnp.concatenate([prefix_segments, segments_NxGxL], axis=2)
    q = (q_NxGxKxLxQxH * h**-0.5).swapaxes(3, 4)
    q_NxGxKxQxLxH = jnp.pad(q, (*[(0, 0)] * 4, (0, after), (0, 0)))

    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    kernel = _kernel(*q_NxGxKxQxLxH.shape[3:5], keys.shape[3], interpret=platform != "tpu")
    if not mesh.empty and mesh.size > 1:
        responses = BATCH[0] if n % batch_shards(mesh) == 0 else None
        heads = "tensor" if k % mesh.shape["tensor"] == 0 else None
        of_heads, of_segments = P(responses, None, heads), P(responses)
        kernel = jax.shard_map(
            kernel, in_specs=(*[of_heads] * 3, *[of_segments] * 2), out_specs=of_heads, check_vma=False
        )
    y_NxGxKxQxLxH = kernel(q_NxGxKxQxLxH, keys, values, segments_NxGxL, key_segments)
    return y_NxGxKxQxLxH[..., :length, :].swapaxes(3, 4)


def _kernel(num_heads: int, length: int, num_keys: int, interpret: bool):
    """The kernel for queries [N, G, K, Q, L, H], keys and values [N, G, K, C, H] and their segments [N, G, L or C]."""
    mask = splash_attention.CausalMask((length, num_keys), offset=num_keys - length)
    q, kv = block_size(length), block_size(num_keys)
    blocks = splash_attention.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )
    splash = splash_attention.make_splash_mqa_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads), block_sizes=blocks, interpret=interpret
    )

    def one(q, keys, values, segments, key_segments):
        return splash(q, keys, values, segment_ids=splash_attention.SegmentIds(segments, key_segments))

    return jax.vmap(jax.vmap(jax.vmap(one, in_axes=(0, 0, 0, None, None))))
