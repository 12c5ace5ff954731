"""Defines small array functions that several modules of the policy use."""

from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array


def at_least_float32(dtype: Any) -> jnp.dtype:
    """Returns float32 for float16 and bfloat16, and float32 and float64 unchanged."""
    return jnp.promote_types(dtype, jnp.float32)


def leading_axes(x: Array, ndim: int) -> jax.Array:
    """Adds axes of size 1 in front of x until x has `ndim` axes.

    Use this before an operation between arrays of different rank. The tests forbid JAX's implicit
    rank promotion.
    """
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))
