"""Relates the mean of (log ratio)^2 early in a run to the time of its collapse.

    log t_c = log t_sign - slope log(m / M_REF) + sigma * normal

m is the mean of (log ratio)^2 over the learner steps from FIRST_STEP to LAST_STEP. It has no unit.
So the relation may carry over to models whose learning rates have another scale.
"""

import dataclasses

import numpy as np

from staleness_grpo.scaling.alarms import before_collapse
from staleness_grpo.scaling.censored import fit_censored_power_law

SIGN = "log_ratio_second_moment"
FIRST_STEP, LAST_STEP = 10, 50  # learner steps of the mean; the first ones are hardly stale
M_REF = 0.1
SMALLEST = 1e-8  # a mean below is rounding: the run has no lag


@dataclasses.dataclass(frozen=True)
class SignLaw:
    """Holds the constants of the relation."""

    time: float  # t_sign, learner steps, at m = M_REF
    slope: float
    sigma: float

    def log_time(self, mean_square: float) -> float:
        """Returns the expected log t_c of a run with this mean of (log ratio)^2."""
        return float(np.log(self.time) - self.slope * np.log(mean_square / M_REF))


# The relation in the calibration settings of `experiments.law` (`signs.calibration`).
SMALL_MODELS = SignLaw(time=858.0, slope=0.69, sigma=1.4)


def early_mean(record: dict) -> float | None:
    """Returns m of a line of cells.jsonl; None if the run has no lag or collapsed too early."""
    blocks = before_collapse(record, SIGN, LAST_STEP)[FIRST_STEP // record["trace_every"] :]
    blocks = blocks[np.isfinite(blocks)]
    if not blocks.size or blocks.mean() < SMALLEST:
        return None
    return float(blocks.mean())


def fit_sign(records: list[dict]) -> SignLaw | None:
    """Fits the relation to a map, with runs that did not collapse as lower bounds.

    Returns:
      The constants; None if fewer than three runs with a value collapsed.
    """
    rows = [
        (mean, record["collapse_step"] or record["steps_run"], record["collapse_step"] is None)
        for record in records
        if record["max_lag"] >= 1 and (mean := early_mean(record)) is not None
    ]
    if sum(not censored for _, _, censored in rows) < 3:
        return None
    means, steps, censored = (np.array(column) for column in zip(*rows, strict=True))
    fit = fit_censored_power_law(means / M_REF, steps.astype(float), censored.astype(bool))
    return SignLaw(float(np.exp(fit.parameters[0])), -float(fit.parameters[1]), fit.sigma)
