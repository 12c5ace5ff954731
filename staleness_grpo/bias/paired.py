"""The gradient bias of stale rollouts where nothing can be enumerated: against fresh ones with common random numbers.

At learner parameters theta the stale batch is answered again by theta itself: the same prompts, the same noise. Of
the N groups (or J blocks of them) with stale gradients s_i and fresh gradients f_i, E s = H(theta, phi) and
E f = H(theta, theta), so that d_i = s_i - f_i has the bias as its mean; at lag 0 it is 0, bitwise. Norms come from
pairs of different groups alone: |mean d|^2 overstates |E d|^2 by the noise, tr Cov(d) / N, the mean of d_i . d_j over
i != j does not. Common random numbers leave less noise in d than two independent batches would.

Everything is a function of the inner products of the gradients, [4, J, J] a comparison (`learner.make_paired_gram`).
"""

import dataclasses
import math

import numpy as np

RESAMPLES = 1000
FEWEST_GROUPS = (
    8  # in all comparisons, for an interval: with 2 it would have no width, with 4 cover 86 % in simulations
)
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Paired:
    """Estimates over K comparisons, each with its bootstrap interval; NaN where nothing could be estimated."""

    bias_norm: float  # root of the mean of |H(theta, phi) - H(theta, theta)|^2; 0 where its estimate is negative
    bias_norm_interval: tuple[float, float]
    relative_bias: float  # over the root of the mean of |H(theta, theta)|^2
    relative_bias_interval: tuple[float, float]
    cosine: float  # of H(theta, phi) with H(theta, theta); NaN where a norm's estimate is not positive
    cosine_interval: tuple[float, float]
    num_groups: int  # or blocks, in all comparisons


NOTHING = Paired(*(math.nan, (math.nan, math.nan)) * 3, num_groups=0)  # of no comparison at all


def estimate(gram_KxMxJxJ: np.ndarray, seed: int = 0) -> Paired:
    """The bias over K comparisons, which are taken together: mean squares over them, not means of norms.

    Intervals are central 95 % percentile intervals over RESAMPLES resamples of the J groups within each comparison; a
    group drawn twice is not paired with itself. They say nothing about other theta, phi or seeds of the training, and
    are NaN with fewer than FEWEST_GROUPS groups.

    Args:
      gram_KxMxJxJ: M = 4 matrices of inner products for each comparison, J >= 2, in the order of
        `learner.make_paired_gram`.
      seed: of the resamples.

    Raises:
      ValueError: for another shape, J < 2, or products that are not finite.
    """
    gram = np.asarray(gram_KxMxJxJ, np.float64)
    if gram.ndim != 4 or gram.shape[1] != 4 or gram.shape[2] != gram.shape[3] or gram.shape[2] < 2:
        raise ValueError(f"inner products [K, 4, J, J] with J >= 2 are needed, got {gram.shape}")
    if not np.all(np.isfinite(gram)):
        raise ValueError("inner products that are not finite")
    num_comparisons, _, num_groups, _ = gram.shape
    gram = gram * (1 - np.eye(num_groups))  # no group with itself
    found = _statistics(gram, np.ones((num_comparisons, num_groups)))
    if num_comparisons * num_groups < FEWEST_GROUPS:
        nothing = (math.nan, math.nan)
        return Paired(*(x for value in found for x in (value, nothing)), num_groups=num_comparisons * num_groups)
    rng = np.random.default_rng(seed)
    probabilities = np.full(num_groups, 1 / num_groups)
    resampled = np.array([
        _statistics(gram, rng.multinomial(num_groups, probabilities, num_comparisons)) for _ in range(RESAMPLES)
    ])  # fmt: skip
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Paired(*(x for pair in zip(found, intervals, strict=True) for x in pair), num_groups=gram[:, 0, 0].size)


def _statistics(gram_KxMxJxJ: np.ndarray, count_KxJ: np.ndarray) -> tuple[float, float, float]:
    """(bias norm, relative bias, cosine) when group j of comparison k counts count_KxJ times."""
    weight_KxJxJ = count_KxJ[:, :, None] * count_KxJ[:, None, :]
    pairs_K = weight_KxJxJ.sum(axis=(1, 2)) - (count_KxJ**2).sum(axis=1)  # of different groups
    used = pairs_K > 0  # a resample may draw one group alone
    sums_KxM = np.einsum("kmij,kij->km", gram_KxMxJxJ, weight_KxJxJ)
    bias, stale, fresh, cross = np.mean(sums_KxM[used] / pairs_K[used, None], axis=0)
    bias_norm = np.sqrt(max(bias, 0.0))
    relative = bias_norm / np.sqrt(fresh) if fresh > 0 else np.nan
    cosine = cross / np.sqrt(stale * fresh) if stale > 0 and fresh > 0 else np.nan
    return float(bias_norm), float(relative), float(cosine)
