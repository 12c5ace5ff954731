"""Defines small array functions that several modules of the policy use."""

from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array

# Of parameters in a training. bfloat16 has 8 bits of precision, so an Adam step of 1e-6 and a
# moment's decay by 0.999 would round to nothing.
PARAM_DTYPES = ("float32", "float64")


def at_least_float32(dtype: Any) -> jnp.dtype:
    """Returns float32 for float16 and bfloat16, and float32 and float64 unchanged."""
    return jnp.promote_types(dtype, jnp.float32)


def after_prompts(
    prefix: tuple[Array, Array], own: tuple[Array, Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns (keys, values) [N, G, K, P + C, H]: each response's own after those of its prompt.

    Kernels that know no shared keys need them. Every response gets a copy of its prompt's.

    Args:
      prefix: (keys, values) of the prompts, each [N, 1, K, P, H].
      own: (keys, values) of the responses, each [N, G, K, C, H].
    """

    def joined(prompts: Array, responses: Array) -> jax.Array:
        copies = jnp.broadcast_to(prompts, (*responses.shape[:2], *prompts.shape[2:]))
        return jnp.concatenate([copies, responses], axis=3)

    return joined(prefix[0], own[0]), joined(prefix[1], own[1])


def leading_axes(x: Array, ndim: int) -> jax.Array:
    """Adds axes of size 1 in front of x until x has `ndim` axes.

    Use this before an operation between arrays of different rank. The tests forbid JAX's implicit
    rank promotion.
    """
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))
