"""Estimates the gradient bias of stale rollouts by pairing them with fresh rollouts.

The estimate needs no enumeration. The current parameters theta answer the stale batch again, with
the same prompts and the same noise. Each of the N groups (or of J blocks of groups) has a stale
gradient s_i and a fresh gradient f_i, with E s = H(theta, phi) and E f = H(theta, theta). So the
mean of d_i = s_i - f_i estimates the bias. It is bitwise 0 at lag 0.

Norms are estimated from pairs of different groups only. |mean d|^2 is too large by the noise
tr Cov(d) / N on average. The mean of d_i . d_j over i != j estimates |E d|^2 without bias. The same
noise in both batches makes d less noisy than with two independent batches.

All estimates are functions of the gradients' inner products, [4, J, J] for each comparison. The
function of `training.diagnostics.make_paired_gram` computes them.
"""

import dataclasses
import math

import numpy as np

from staleness_grpo.scaling.bootstrap import CONFIDENCE

RESAMPLES = 1000
# An interval needs at least FEWEST_BLOCKS groups (or blocks) in each comparison, because resamples
# vary only within a comparison. It needs at least FEWEST_GROUPS groups in all comparisons together.
FEWEST_BLOCKS, FEWEST_GROUPS = 4, 8


@dataclasses.dataclass(frozen=True)
class Paired:
    """Holds estimates over all comparisons, each with its bootstrap interval.

    An estimate that could not be computed is NaN.
    """

    # Root of the mean of |H(theta, phi) - H(theta, theta)|^2; 0 if its estimate is negative.
    bias_norm: float
    bias_norm_interval: tuple[float, float]
    relative_bias: float  # bias_norm / root of the mean of |H(theta, theta)|^2
    relative_bias_interval: tuple[float, float]
    # Cosine of H(theta, phi) and H(theta, theta). As a quotient of unbiased estimates it may exceed
    # 1. NaN if the estimate of a squared norm is not positive.
    cosine: float
    cosine_interval: tuple[float, float]
    num_groups: int  # number of groups, or blocks, in all comparisons


_UNKNOWN = (math.nan, math.nan)
NO_ESTIMATE = Paired(  # the result without any comparison
    math.nan, _UNKNOWN, math.nan, _UNKNOWN, math.nan, _UNKNOWN, num_groups=0
)


def estimate(gram_XxUxJxJ: np.ndarray, seed: int = 0) -> Paired:
    """Estimates the bias over X comparisons together.

    Squared norms are averaged over the comparisons, and then the root is taken.

    Intervals are central 95 % percentile intervals over RESAMPLES resamples of the groups within
    each comparison. A group that is drawn twice is not paired with itself. A resample draws J - 1
    of the J groups, with replacement. The variance of a resampled mean is then an unbiased estimate
    of the variance of the mean. With J draws it would be too small by the factor (J - 1) / J.

    In simulations with Gaussian gradients, intervals covered the truth in at least 95 % of cases if
    a group's noise was larger than its mean. With less noise the coverage was somewhat lower, and
    lowest for the cosine of a single comparison. Intervals do not cover other theta, other phi or
    other training seeds.

    An interval is NaN if its estimate is NaN, if a comparison has fewer than FEWEST_BLOCKS groups,
    or if all comparisons together have fewer than FEWEST_GROUPS groups. If a resample's estimate of
    a squared norm is not positive, its quotient is infinite. So an interval's bound is infinite if
    many resamples have such an estimate.

    Args:
      gram_XxUxJxJ: U = 4 matrices of inner products for each comparison, J >= 2, in the order of
        `training.diagnostics.make_paired_gram`.
      seed: the seed of the resamples.

    Raises:
      ValueError: the shape is another one, J < 2, or an inner product is not finite.
    """
    gram_XxUxJxJ = np.asarray(gram_XxUxJxJ, np.float64)
    shape = gram_XxUxJxJ.shape
    if len(shape) != 4 or shape[1] != 4 or shape[2] != shape[3] or shape[2] < 2:
        raise ValueError(f"the inner products have shape {shape}: give [X, 4, J, J] with J >= 2")
    if not np.all(np.isfinite(gram_XxUxJxJ)):
        raise ValueError("some inner products are not finite: leave out their comparisons")
    num_comparisons, _, num_groups, _ = shape
    gram_XxUxJxJ = gram_XxUxJxJ * (1 - np.eye(num_groups))  # no pairs of a group with itself
    estimates = [
        value if math.isfinite(value) else math.nan
        for value in _statistics(gram_XxUxJxJ, np.ones((num_comparisons, num_groups)))
    ]
    intervals = [_UNKNOWN] * len(estimates)
    if num_groups >= FEWEST_BLOCKS and num_comparisons * num_groups >= FEWEST_GROUPS:
        rng = np.random.default_rng(seed)
        probabilities = np.full(num_groups, 1 / num_groups)
        resampled = np.array(
            [
                _statistics(
                    gram_XxUxJxJ, rng.multinomial(num_groups - 1, probabilities, num_comparisons)
                )
                for _ in range(RESAMPLES)
            ]
        )
        # A resample without a pair of different groups is left out. With the fewest allowed groups,
        # this is expected for a share (1 / FEWEST_BLOCKS^2)^2 of the resamples.
        resampled = resampled[~np.isnan(resampled[:, 0])]
        intervals = [
            _interval(value, values) for value, values in zip(estimates, resampled.T, strict=True)
        ]
    bias_norm, relative_bias, cosine = estimates
    return Paired(
        bias_norm=bias_norm,
        bias_norm_interval=intervals[0],
        relative_bias=relative_bias,
        relative_bias_interval=intervals[1],
        cosine=cosine,
        cosine_interval=intervals[2],
        num_groups=num_comparisons * num_groups,
    )


def _interval(estimate: float, resampled: np.ndarray) -> tuple[float, float]:
    """Returns the central percentile interval; (NaN, NaN) if the estimate is NaN."""
    if math.isnan(estimate):
        return _UNKNOWN
    tail = (1 - CONFIDENCE) / 2
    # No interpolation, because values may be infinite.
    low = np.quantile(resampled, tail, method="lower")
    high = np.quantile(resampled, 1 - tail, method="higher")
    return float(low), float(high)


def _statistics(gram_XxUxJxJ: np.ndarray, count_XxJ: np.ndarray) -> tuple[float, float, float]:
    """Returns (bias norm, relative bias, cosine) of a batch with each group `count_XxJ` times.

    All three are NaN without a pair of different groups. A quotient is infinite if the estimate of
    the squared norm in its denominator is not positive.
    """
    weight_XxJxJ = count_XxJ[:, :, None] * count_XxJ[:, None, :]
    # Pairs of different groups.
    pairs_X = weight_XxJxJ.sum(axis=(1, 2)) - (count_XxJ**2).sum(axis=1)
    used_X = pairs_X > 0  # a resample may draw one group alone
    if not np.any(used_X):
        return math.nan, math.nan, math.nan
    sums_XxU = np.einsum("xuij,xij->xu", gram_XxUxJxJ, weight_XxJxJ)
    bias, stale, fresh, cross = np.mean(sums_XxU[used_X] / pairs_X[used_X, None], axis=0)
    bias_norm = np.sqrt(max(bias, 0.0))
    relative = bias_norm / np.sqrt(fresh) if fresh > 0 else math.inf
    cosine = (
        cross / np.sqrt(stale * fresh) if min(stale, fresh) > 0 else math.copysign(math.inf, cross)
    )
    return float(bias_norm), float(relative), float(cosine)
