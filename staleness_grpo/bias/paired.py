"""Estimates the gradient bias of stale rollouts from fresh rollouts paired with them.

This needs no enumeration. At learner parameters theta, theta itself answers the stale batch again:
the same prompts with the same noise. Each of the N groups (or of J blocks of them) has a stale
gradient s_i and a fresh gradient f_i, with E s = H(theta, phi) and E f = H(theta, theta). So the
mean of d_i = s_i - f_i is the bias, which is bitwise 0 at lag 0.

Norms come from pairs of different groups alone. |mean d|^2 overstates |E d|^2 by the noise, which
is tr Cov(d) / N; the mean of d_i . d_j over i != j does not. Common random numbers leave less noise
in d than two independent batches would.

Everything is a function of the inner products of the gradients, [4, J, J] for each comparison,
which `training.diagnostics.make_paired_gram` computes.
"""

import dataclasses
import math

import numpy as np

from staleness_grpo.scaling.bootstrap import CONFIDENCE

RESAMPLES = 1000
# An interval needs so many groups or blocks in each comparison, because a resample sees only the
# spread within a comparison. It needs so many groups in all.
FEWEST_BLOCKS, FEWEST_GROUPS = 4, 8


@dataclasses.dataclass(frozen=True)
class Paired:
    """Holds estimates over all comparisons, each with its bootstrap interval.

    What could not be estimated is NaN.
    """

    # Root of the mean of |H(theta, phi) - H(theta, theta)|^2; 0 if its estimate is negative.
    bias_norm: float
    bias_norm_interval: tuple[float, float]
    relative_bias: float  # bias_norm over the root of the mean of |H(theta, theta)|^2
    relative_bias_interval: tuple[float, float]
    # Cosine of H(theta, phi) with H(theta, theta). It is a quotient of unbiased estimates, which
    # may exceed 1; NaN where the estimate of a norm is not positive.
    cosine: float
    cosine_interval: tuple[float, float]
    num_groups: int  # or blocks, in all comparisons


_UNKNOWN = (math.nan, math.nan)
NO_ESTIMATE = Paired(  # the result of no comparison at all
    math.nan, _UNKNOWN, math.nan, _UNKNOWN, math.nan, _UNKNOWN, num_groups=0
)


def estimate(gram_XxUxJxJ: np.ndarray, seed: int = 0) -> Paired:
    """Estimates the bias over X comparisons together: mean squares over them, not means of norms.

    Intervals are central 95 % percentile intervals over RESAMPLES resamples of the groups within
    each comparison. A group drawn twice is not paired with itself. J - 1 of the J groups are drawn,
    with replacement, so that the variance of a resampled mean is that of the mean without bias; J
    draws would have (J - 1) / J of it. In simulations with Gaussian gradients the intervals covered
    the truth in 95 % of cases or more where a group's noise was larger than its mean. With less
    noise they covered it in somewhat fewer, in fewest for the cosine of a single comparison. They
    say nothing about other theta, phi or seeds of the training.

    They are NaN where the estimate is. They are also NaN with fewer than FEWEST_BLOCKS groups in a
    comparison, or FEWEST_GROUPS in all. In a resample where a norm's estimate is not positive, the
    quotient counts as infinite. So a bound is infinite where many are.

    Args:
      gram_XxUxJxJ: U = 4 matrices of inner products for each comparison, J >= 2, in the order of
        `training.diagnostics.make_paired_gram`.
      seed: of the resamples.

    Raises:
      ValueError: for another shape, J < 2, or products that are not finite.
    """
    gram_XxUxJxJ = np.asarray(gram_XxUxJxJ, np.float64)
    shape = gram_XxUxJxJ.shape
    if len(shape) != 4 or shape[1] != 4 or shape[2] != shape[3] or shape[2] < 2:
        raise ValueError(f"the inner products have shape {shape}: give [X, 4, J, J] with J >= 2")
    if not np.all(np.isfinite(gram_XxUxJxJ)):
        raise ValueError("some inner products are not finite: leave out their comparisons")
    num_comparisons, _, num_groups, _ = shape
    gram_XxUxJxJ = gram_XxUxJxJ * (1 - np.eye(num_groups))  # no group with itself
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
        # A resample without a pair of different groups is left out. With the fewest groups that are
        # allowed, (1 / FEWEST_BLOCKS^2)^2 of them are.
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
    """Returns the central percentile interval; NaN for an estimate that is NaN."""
    if math.isnan(estimate):
        return _UNKNOWN
    tail = (1 - CONFIDENCE) / 2
    # Without interpolation, which infinite values do not allow.
    low = np.quantile(resampled, tail, method="lower")
    high = np.quantile(resampled, 1 - tail, method="higher")
    return float(low), float(high)


def _statistics(gram_XxUxJxJ: np.ndarray, count_XxJ: np.ndarray) -> tuple[float, float, float]:
    """Returns (bias norm, relative bias, cosine) when each group counts `count_XxJ` times.

    All are NaN without a pair of different groups. A quotient by a norm whose estimate is not
    positive is infinite.
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
