"""Chooses the short runs from which the constants of the law of collapse follow.

At each lag, the probe halves a grid of learning rates until a stable rate is next to one that
collapses. A larger lag is never safer, so a rate that is stable at one lag is not run again at a
smaller one.
"""

from collections.abc import Callable, Sequence
from typing import Any

# The lags of a probe. S = 0 finds the cap, and the other two the part of S below and above S0.
LAGS = (0, 1, 16)
# Learner steps of each run. With 150, runs that collapse soon after look stable.
NUM_STEPS = 300


def probe(
    run: Callable[[int, float], tuple[bool, Any]], lags: Sequence[int], rates: Sequence[float]
) -> list[Any]:
    """Runs a probe and returns what its runs returned, in their order.

    Args:
      run: maps S and eta to whether that run collapsed, and to anything that is to be kept of it.
      lags: values of S, all different.
      rates: the grid of learning rates, all different.
    """
    rates = sorted(rates)
    kept = []
    stable = -1  # index of the largest rate that is known to be stable at a larger lag
    for lag in sorted(lags, reverse=True):
        low, high = stable, len(rates)
        while high - low > 1:
            middle = (low + high) // 2
            collapsed, result = run(lag, rates[middle])
            kept.append(result)
            low, high = (low, middle) if collapsed else (middle, high)
        stable = low
    return kept
