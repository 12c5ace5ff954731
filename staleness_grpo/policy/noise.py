"""Computes JAX's Threefry random numbers on CPUs without a loop over their rounds.

JAX lowers Threefry for CPUs to a loop of small kernels. For a narrow decoder, starting the kernels
takes longer than the decoder. The numbers here are the same to the last bit, from one kernel.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from staleness_grpo.runtime.mesh import platform

# Threefry-2x32 with 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
NUM_BLOCKS = 5  # of four rounds; a part of the key is added after each


def threefry(key_2: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the two words, uint32, that Threefry-2x32 makes of a key and the words of a counter.

    Args:
      key_2: uint32, two words.
      high, low: uint32, arrays of one shape.
    """
    parts = (key_2[0], key_2[1], key_2[0] ^ key_2[1] ^ PARITY)
    x, y = high + parts[0], low + parts[1]
    for block in range(NUM_BLOCKS):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + parts[(block + 1) % 3]
        y = y + parts[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def fold_in(key_2: jax.Array, data: int | jax.Array) -> jax.Array:
    """Returns the key of `jax.random.fold_in`, two words."""
    low = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(threefry(key_2, jnp.zeros_like(low), low))


def random_bits(key_2: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns the bits of `jax.random.bits`, for a width of 32 or 64."""
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    x, y = threefry(key_2, jnp.zeros_like(low), low)
    if bit_width == 32:
        return x ^ y
    assert bit_width == 64, "noise has 32 or 64 bits"
    return (x.astype(jnp.uint64) << np.uint64(32)) | y.astype(jnp.uint64)


def _unused(*args: object) -> jax.Array:
    raise NotImplementedError("the sampler only folds numbers into its key")


UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=_unused,
    split=_unused,
    random_bits=random_bits,
    fold_in=fold_in,
    name="unrolled_threefry2x32",
    tag="ufry",
)


def unrolled(key: jax.Array) -> jax.Array:
    """Returns a key with the same random numbers, which a CPU computes faster.

    The key stays as it is where this module does not know its numbers, or on an accelerator.
    """
    # JAX adds this attribute at import.
    has_counters = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if jax.random.key_impl(key) != "threefry2x32" or not has_counters or platform() != "cpu":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=UNROLLED)
