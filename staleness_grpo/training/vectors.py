"""Computes inner products of gradients and parameters, as of one long vector."""

import jax
import jax.numpy as jnp

from staleness_grpo.types import PyTree

# Arrays of at most this many elements are joined before they are multiplied. On CPUs, starting a
# sum costs more than summing them, and each sum is one more kernel to compile.
JOINED_ELEMENTS = 2**16


def inner(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the inner product of two trees of equal arrays, in at least float32."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    small = [(x.ravel(), y.ravel()) for x, y in pairs if x.size <= JOINED_ELEMENTS]
    products = [_of_arrays(x, y) for x, y in pairs if x.size > JOINED_ELEMENTS]
    if small:
        xs, ys = zip(*small, strict=True)
        products.append(_of_arrays(jnp.concatenate(xs), jnp.concatenate(ys)))
    return sum(products, jnp.float32(0.0))


def _of_arrays(x: jax.Array, y: jax.Array) -> jax.Array:
    # Flattened axes would lose their sharding.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.tensordot(x, y, axes=x.ndim, precision="highest", preferred_element_type=wide)


def norm(a: PyTree) -> jax.Array:
    """Returns the Euclidean norm of a tree, in at least float32."""
    return jnp.sqrt(inner(a, a))
