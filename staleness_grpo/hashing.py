"""Randomness as a function of integer keys, for choices made on the host."""

import numpy as np


def hash64(*keys: int | np.ndarray) -> np.ndarray:
    """64 random bits, uint64, for each tuple of integer keys; arrays of keys broadcast.

    The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), chained over the keys. Counter-based, since
    a NumPy Generator for each (step, slot) would cost 20 us each.
    """
    state = np.zeros(1, np.uint64)
    for key in keys:
        key = np.uint64(key % 2**64) if isinstance(key, int) else np.asarray(key).astype(np.uint64)
        z = (state ^ key) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = z ^ (z >> np.uint64(31))
    return state


def uniform_integers(bound: int | np.ndarray, *keys: int | np.ndarray) -> np.ndarray:
    """An integer, int64, uniform on 0..bound-1 for each tuple of keys; 1 <= bound <= 2^32, broadcast with them.

    Multiply-shift on 32 random bits: each probability is off by at most 2^-32, without a rejection loop.
    """
    random = hash64(*keys) >> np.uint64(32)
    return ((random * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
