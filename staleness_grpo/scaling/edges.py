"""Finds the usable learning rates at each lag: from too small to learn to too large to survive.

A learning rate is usable at a lag S if at least half of the seeds learn there
(`outcomes.outcome`). The two edges of the usable rates are where this share crosses one half. They
are found by linear interpolation of the share over the logarithm of the learning rate, outwards
from the rates with the largest share. So they need no fit, and a small grid has them too.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from staleness_grpo.scaling.bootstrap import resampled_rows
from staleness_grpo.scaling.outcomes import LEARNED, outcomes

HALF = 0.5
BELOW, ABOVE, NONE = "below the grid", "above the grid", "no usable rate"


@dataclasses.dataclass(frozen=True)
class Edges:
    """Holds the two edges of the usable learning rates at one lag.

    An edge is 0 or infinity if the rates are usable to that end of the grid. Both are NaN if no
    learning rate of the grid is usable.
    """

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Learned:
    """Says of n cells whether they learned. Every field is an array [n]."""

    max_lag: np.ndarray  # S
    learning_rate: np.ndarray  # eta
    seed: np.ndarray
    learned: np.ndarray  # bool

    def shares(self, rows: Any = slice(None)) -> dict[int, dict[float, float]]:
        """Returns the share of seeds that learned, by lag and learning rate, both ascending."""
        lags, rates, learned = self.max_lag[rows], self.learning_rate[rows], self.learned[rows]
        return {
            int(lag): {
                float(rate): float(learned[(lags == lag) & (rates == rate)].mean())
                for rate in np.unique(rates[lags == lag])
            }
            for lag in np.unique(lags)
        }


def learned_cells(records: list[dict]) -> Learned:
    """Returns which cells of a map learned. What can be reached is judged from all of them."""
    learned = np.array([outcome == LEARNED for outcome in outcomes(records)])
    lags, rates, seeds = (
        np.array([record[name] for record in records])
        for name in ("max_lag", "learning_rate", "seed")
    )
    return Learned(lags, rates, seeds, learned)


def edges(shares: dict[float, float]) -> Edges:
    """Returns the edges at one lag.

    Args:
      shares: the share of seeds that learned, by learning rate, in ascending order.
    """
    rates, share = np.array(list(shares)), np.array(list(shares.values()))
    if share.max() < HALF:
        return Edges(math.nan, math.nan)
    best = np.flatnonzero(share == share.max())
    low = _crossing(rates[: best[0] + 1][::-1], share[: best[0] + 1][::-1], 0.0)
    return Edges(low, _crossing(rates[best[-1] :], share[best[-1] :], math.inf))


def _crossing(rates: np.ndarray, share: np.ndarray, without: float) -> float:
    """Returns the rate at which the share falls below one half; `without` if it does not.

    The rates are in the order of the walk, and the first share is at least one half.
    """
    below = np.flatnonzero(share < HALF)
    if not below.size:
        return without
    last, first = below[0] - 1, below[0]
    weight = (share[last] - HALF) / (share[last] - share[first])
    log_rate = (1 - weight) * np.log(rates[last]) + weight * np.log(rates[first])
    return float(np.exp(log_rate))


def summarize(records: list[dict], num_resamples: int) -> dict[str, Any]:
    """Returns the edges at each lag of one map, and how the upper edge depends on the lag.

    Intervals are 95 % percentile intervals of a bootstrap over seeds. Between two rates of the
    grid an edge is known only up to their distance. So each resample also shifts the learning rates
    of each lag at random, by up to half a step of the grid.

    Args:
      records: lines of a sweep's cells.jsonl.
      num_resamples: repetitions of the bootstrap.

    Returns:
      - `by_lag`: for each S `low` and `high` with `low_interval` and `high_interval`, and
        `learned`, the share of seeds that learned by learning rate. An edge outside the grid is
        null, and so is an end of an interval. `low_is` and `high_is` then say why.
      - `slope`: d log(upper edge) / d log S over the lags >= 1 whose upper edge is in the grid,
        with `slope_interval`; null for fewer than three such lags.
    """
    cells = learned_cells(records)
    shares = cells.shares()
    found = _logarithms(shares)
    lags = list(found)
    drawn = _resampled(cells, lags, num_resamples)
    by_lag = {}
    for i, lag in enumerate(lags):
        low, high = found[lag]
        entry: dict[str, Any] = {"low": _rate(low), "high": _rate(high)}
        if not np.isfinite(low):
            entry["low_is"] = NONE if np.isnan(low) else BELOW
        if not np.isfinite(high):
            entry["high_is"] = NONE if np.isnan(high) else ABOVE
        for j, name in enumerate(("low", "high")):
            of_edge = drawn[:, i, j]
            known = of_edge[~np.isnan(of_edge)]
            # "nearest" draws no line between a finite and an infinite value.
            ends = [np.nan, np.nan]
            if known.size:
                ends = list(np.percentile(known, [2.5, 97.5], method="nearest"))
            entry[f"{name}_interval"] = [_rate(end) for end in ends]
        entry["learned"] = {f"{rate:g}": share for rate, share in shares[lag].items()}
        by_lag[str(lag)] = entry
    slopes = np.array([_slope(lags, resample[:, 1]) for resample in drawn])
    slope = _slope(lags, np.array([found[lag][1] for lag in lags]))
    known = slopes[np.isfinite(slopes)]
    is_known = np.isfinite(slope) and known.size
    return {
        "by_lag": by_lag,
        "slope": slope if is_known else None,
        "slope_interval": list(np.percentile(known, [2.5, 97.5])) if is_known else None,
        "num_seeds": len({record["seed"] for record in records}),
    }


def _logarithms(shares: dict[int, dict[float, float]]) -> dict[int, tuple[float, float]]:
    """Returns the logarithms of both edges by lag."""
    with np.errstate(divide="ignore"):
        found = {lag: edges(of_lag) for lag, of_lag in shares.items()}
        return {lag: (float(np.log(e.low)), float(np.log(e.high))) for lag, e in found.items()}


def _resampled(cells: Learned, lags: list[int], num_resamples: int) -> np.ndarray:
    """Returns the logarithms of both edges [num_resamples, lags, 2] of resampled seeds."""
    rates = np.log(np.unique(cells.learning_rate))
    step = np.diff(rates).mean() if len(rates) > 1 else 0.0
    rng = np.random.default_rng(1)
    drawn = []
    for rows in resampled_rows(cells.seed, num_resamples):
        found = _logarithms(cells.shares(rows))
        shift = rng.uniform(-step / 2, step / 2, len(lags))
        drawn.append([np.array(found[lag]) + shift[i] for i, lag in enumerate(lags)])
    return np.array(drawn)


def _slope(lags: list[int], log_high: np.ndarray) -> float:
    """Returns the least-squares slope of log(upper edge) in log S; NaN for fewer than 3 lags."""
    chosen = [i for i, lag in enumerate(lags) if lag >= 1 and np.isfinite(log_high[i])]
    if len(chosen) < 3:
        return math.nan
    return float(np.polyfit(np.log([lags[i] for i in chosen]), log_high[chosen], 1)[0])


def _rate(log_rate: float) -> float | None:
    return float(np.exp(log_rate)) if np.isfinite(log_rate) else None
