"""Finds early signs of a collapse, and how long before it they show.

The signs are the cosine of consecutive gradients, and thresholds on a trace.

A record is a line of a sweep's cells.jsonl. Its traces are means over blocks of `trace_every`
learner steps. A run with `collapse_step` None is stable.
"""

import numpy as np

EARLY_STEPS = 50  # learner steps from which an early sign is taken
# From this S on, stable and collapsing runs exist side by side. So their signs can be compared.
MIN_LAG_WITH_BOTH_OUTCOMES = 4
ALLOWED_FALSE_ALARM_SHARE = 0.1  # share of the stable runs in which an alarm may go off
# Traces whose rise might foretell a collapse.
SIGNS = (
    "gradient_cosine",
    "clip_fraction",
    "log_ratio_second_moment",
    "drift_from_behavior",
    "entropy",
)


def cosine(records: list[dict]) -> dict:
    """Summarizes the cosine of consecutive gradients before the collapse, or over the whole run.

    `roc_area` is the probability that a collapsing run has a larger cosine than a stable one, over
    runs with S >= MIN_LAG_WITH_BOTH_OUTCOMES; n counts them. Its `whole` entries take all steps
    before the collapse, its `early` entries the first EARLY_STEPS alone. `median_by_lag` has the
    median for each S. `relative` is the mean cosine over the mean ceiling that the noise of the
    batches sets (see `training.diagnostics.make_cosine_ceiling`).
    """
    compared = _compared(records)
    collapsed = np.array([_collapsed(record) for record in compared])
    areas = {}
    for prefix, cosine_of in (("", mean_cosine), ("relative_", relative_cosine)):
        for span, steps in (("whole", None), ("early", EARLY_STEPS)):
            values = np.array([cosine_of(record, steps) for record in compared])
            areas[prefix + span] = roc_area(values[collapsed], values[~collapsed])
    by_lag = {}
    for lag in sorted({record["max_lag"] for record in records}):
        at_lag = [record for record in records if record["max_lag"] == lag]
        by_lag[str(lag)] = {
            outcome: _median_cosines([r for r in at_lag if _collapsed(r) == is_collapsed])
            for outcome, is_collapsed in (("stable", False), ("collapsed", True))
        }
    return {"roc_area": areas, "median_by_lag": by_lag, "n": len(compared)}


def before_collapse(record: dict, trace: str, steps: int | None = None) -> np.ndarray:
    """Returns the blocks of a trace before the collapse, and at least the first block.

    With `steps`, blocks after that learner step are left out as well.
    """
    every = record["trace_every"]
    end = record["steps_run"] if record["collapse_step"] is None else record["collapse_step"]
    end = end if steps is None else min(end, steps)
    return np.array(record["traces"][trace][: max(end // every, 1)], float)


def mean_cosine(record: dict, steps: int | None = None) -> float:
    """Averages the cosine of consecutive gradients before the collapse, or before `steps`."""
    return float(np.mean(before_collapse(record, "gradient_cosine", steps)))


def relative_cosine(record: dict, steps: int | None = None) -> float:
    """Returns `mean_cosine` over the mean of the measured ceilings."""
    ceilings = before_collapse(record, "gradient_cosine_ceiling", steps)
    return mean_cosine(record, steps) / float(np.nanmean(ceilings))


def alarm(records: list[dict], sign: str) -> dict:
    """Counts the collapses that a threshold on one trace foretells, and how long before.

    The threshold is the level that a share of ALLOWED_FALSE_ALARM_SHARE of the stable runs of one
    half of the seeds passes. It is judged on the other half, and both halves are averaged.
    Only runs with S >= MIN_LAG_WITH_BOTH_OUTCOMES count.

    Returns:
      `false_alarms`: share of the stable runs with an alarm. `found`: share of the collapses with
      an alarm. `median_lead`: learner steps from the alarm to the collapse, or None without an
      alarm. `n`: number of collapses.
    """
    compared = _compared(records)
    traces = [before_collapse(record, sign) for record in compared]
    highest = np.array([np.nanmax(trace) for trace in traces])
    collapsed = np.array([_collapsed(record) for record in compared])
    seeds = np.array([record["seed"] for record in compared])
    half = np.searchsorted(np.unique(seeds), seeds) // max(len(np.unique(seeds)) // 2, 1) % 2
    false_alarms, foretold, leads = [], [], []
    for judged in (0, 1):
        threshold = np.quantile(
            highest[~collapsed & (half != judged)], 1 - ALLOWED_FALSE_ALARM_SHARE
        )
        false_alarms.append(np.mean(highest[~collapsed & (half == judged)] > threshold))
        for run in np.flatnonzero(collapsed & (half == judged)):
            above = np.flatnonzero(traces[run] > threshold)
            foretold.append(above.size > 0)
            if above.size:
                record = compared[run]
                leads.append(record["collapse_step"] - record["trace_every"] * int(above[0]))
    return {
        "false_alarms": float(np.mean(false_alarms)),
        "found": float(np.mean(foretold)),
        "median_lead": float(np.median(leads)) if leads else None,
        "n": len(foretold),
    }


def roc_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns P(positive > negative) over all pairs; ties count half."""
    difference = positive[:, None] - negative[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _collapsed(record: dict) -> bool:
    return record["collapse_step"] is not None


def _compared(records: list[dict]) -> list[dict]:
    return [record for record in records if record["max_lag"] >= MIN_LAG_WITH_BOTH_OUTCOMES]


def _median_cosines(records: list[dict]) -> dict[str, float | None]:
    return {
        name: float(np.median([cosine_of(record) for record in records])) if records else None
        for name, cosine_of in (("cosine", mean_cosine), ("relative", relative_cosine))
    }
