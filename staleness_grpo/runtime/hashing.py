"""Computes random numbers on the host as a function of integer keys."""

import numpy as np


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """Returns 64 random bits, uint64, for each tuple of integer keys. Arrays of keys broadcast.

    The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) is applied to one key after
    another. A hash of the keys is used because making a random generator for each (step, slot)
    would be slow.
    """
    state: np.ndarray = np.zeros(1, np.uint64)
    for key in keys:
        bits = np.uint64(key % 2**64) if isinstance(key, int) else np.asarray(key).astype(np.uint64)
        z = (state ^ bits) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = z ^ (z >> np.uint64(31))
    return state


def uniform_integers(bound: int | np.ndarray, *keys: int | np.ndarray) -> np.ndarray:
    """Returns a uniform random integer, int64, from 0..bound-1 for each tuple of keys.

    The integer is (bits * bound) >> 32 with 32 random bits. Each probability differs from 1 / bound
    by at most 2^-32, and no draw is rejected.

    Args:
      bound: from 1 to 2^32; broadcasts with the keys.
      *keys: as in `hash64`.
    """
    bits = hash64(*keys) >> np.uint64(32)
    return ((bits * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
