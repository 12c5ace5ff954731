"""Holds small array functions that the modules of the policy share."""

from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array


def at_least_float32(dtype: Any) -> jnp.dtype:
    """Returns float32 for a half precision, and any other dtype unchanged."""
    return jnp.promote_types(dtype, jnp.float32)


def leading_axes(x: Array, ndim: int) -> jax.Array:
    """Puts axes of size 1 in front of x until it has `ndim` axes.

    This writes out a broadcast between arrays of different rank. The tests refuse any other.
    """
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))
