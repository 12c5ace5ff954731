"""Computes attention by cuDNN's fused kernel for NVIDIA GPUs, through JAX's own interface."""

import jax
import jax.numpy as jnp

from staleness_grpo.policy.numerics import after_prompts
from staleness_grpo.runtime.mesh import platform
from staleness_grpo.types import Array


def attend_by_cudnn(
    q_NxGxKxLxQxH: Array,
    own: tuple[Array, Array],
    own_mask: Array,
    prefix: tuple[Array, Array] | None,
    prefix_mask_NxP: Array | None,
) -> jax.Array:
    """Returns the result of `attention.attend`, [N, G, K, L, Q, H].

    The results of the two functions differ by rounding, and for queries that see no key, which are
    padding. Every response gets a copy of its prompt's keys and values, because the kernel knows no
    shared ones.

    If the mesh, or without a mesh the default backend, has no GPU, XLA computes the same products
    without the kernel. This is meant for tests. The kernel takes bfloat16, and no float32.
    """
    n, g, k, length, num_queries, h = q_NxGxKxLxQxH.shape
    # JAX wants [batch, positions, heads, features]; query head k Q + q reads key head k.
    queries = q_NxGxKxLxQxH.transpose(0, 1, 3, 2, 4, 5).reshape(n * g, length, k * num_queries, h)
    keys, values = own
    mask = jnp.broadcast_to(own_mask, (n, g, length, keys.shape[3]))
    if prefix is not None:
        assert prefix_mask_NxP is not None, "a prefix needs its mask"
        keys, values = after_prompts(prefix, own)
        seen = prefix_mask_NxP[:, None, None]
        seen = jnp.broadcast_to(seen, (n, g, length, seen.shape[-1]))
        mask = jnp.concatenate([seen, mask], axis=-1)

    # The kernel has gradients for even lengths only (JAX: fused_attention_stablehlo.py). One more
    # query sees all keys, and one more key is not seen.
    extra_query, extra_key = length % 2, mask.shape[-1] % 2

    def by_response(x_NxGxKxCxH: Array) -> jax.Array:
        x = jnp.asarray(x_NxGxKxCxH).swapaxes(2, 3).reshape(n * g, -1, k, h)
        return jnp.pad(x, ((0, 0), (0, extra_key), (0, 0), (0, 0)))

    mask = mask.reshape(n * g, 1, length, -1)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, extra_query), (0, 0)), constant_values=True)
    y = jax.nn.dot_product_attention(
        jnp.pad(queries, ((0, 0), (0, extra_query), (0, 0), (0, 0))),
        by_response(keys),
        by_response(values),
        mask=jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, extra_key))),
        implementation="cudnn" if platform() == "gpu" else "xla",
    )[:, :length]
    return y.reshape(n, g, length, k, num_queries, h).transpose(0, 1, 3, 2, 4, 5)
