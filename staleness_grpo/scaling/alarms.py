"""Measures how well, and how early, traces of a run predict its collapse.

The cosine of consecutive gradients is compared between collapsing and stable runs. A threshold on a
trace is used as an alarm.

A record is a line of a sweep's cells.jsonl. Its traces are means over blocks of `trace_every`
learner steps. A run is stable if its `collapse_step` is None.
"""

import numpy as np

EARLY_STEPS = 50  # an early sign uses only the first 50 learner steps
# Runs with a smaller S are left out of comparisons. Only from this S on does the sweep have both
# stable and collapsing runs.
MIN_LAG_WITH_BOTH_OUTCOMES = 4
CLIP_LEVEL = 0.1  # clip fraction from which a run counts as clipped
ALLOWED_FALSE_ALARM_SHARE = 0.1  # share of stable runs in which an alarm may go off
# Traces that may rise before a collapse.
SIGNS = (
    "gradient_cosine",
    "clip_fraction",
    "log_ratio_second_moment",
    "drift_from_behavior",
    "entropy",
)


def measured_signs(records: list[dict]) -> list[str]:
    """Returns the SIGNS that all records have a trace of."""
    return [sign for sign in SIGNS if all(sign in record["traces"] for record in records)]


def cosine(records: list[dict]) -> dict | None:
    """Summarizes the cosine of consecutive gradients, for collapsing and for stable runs.

    The cosine of a run is its mean before the collapse, or over the whole run if it is stable. The
    relative cosine is that mean divided by the mean ceiling, which the noise of the batches sets
    (see `training.diagnostics.make_cosine_ceiling`).

    Returns:
      `roc_area`: the probability that a collapsing run has a larger cosine than a stable run, over
        runs with S >= MIN_LAG_WITH_BOTH_OUTCOMES. It has four entries. `whole` and
        `relative_whole` use all steps before the collapse. `early` and `relative_early` use only
        the first EARLY_STEPS steps.
      `median_by_lag`: for each S and outcome, the medians of the cosine and the relative cosine.
      `n`: the number of runs compared in `roc_area`.
      None without runs of both outcomes at such S.
    """
    compared = _with_both_outcomes(records)
    collapsed = np.array([_collapsed(record) for record in compared], bool)
    if collapsed.all() or not collapsed.any():
        return None
    roc_areas = {}
    for prefix, cosine_of in (("", mean_cosine), ("relative_", relative_cosine)):
        for span, steps in (("whole", None), ("early", EARLY_STEPS)):
            values = np.array([cosine_of(record, steps) for record in compared])
            roc_areas[prefix + span] = roc_area(values[collapsed], values[~collapsed])
    by_lag = {}
    for lag in sorted({record["max_lag"] for record in records}):
        at_lag = [record for record in records if record["max_lag"] == lag]
        by_lag[str(lag)] = {
            outcome: _median_cosines([r for r in at_lag if _collapsed(r) == is_collapsed])
            for outcome, is_collapsed in (("stable", False), ("collapsed", True))
        }
    return {"roc_area": roc_areas, "median_by_lag": by_lag, "n": len(compared)}


def before_collapse(record: dict, trace: str, steps: int | None = None) -> np.ndarray:
    """Returns the blocks of a trace before the collapse, but always at least the first block.

    If `steps` is given, blocks after that learner step are left out too.
    """
    block_steps = record["trace_every"]
    end = record["steps_run"] if record["collapse_step"] is None else record["collapse_step"]
    end = end if steps is None else min(end, steps)
    return np.array(record["traces"][trace][: max(end // block_steps, 1)], float)


def mean_cosine(record: dict, steps: int | None = None) -> float:
    """Returns the mean cosine of consecutive gradients before the collapse, and before `steps`."""
    return float(np.mean(before_collapse(record, "gradient_cosine", steps)))


def relative_cosine(record: dict, steps: int | None = None) -> float:
    """Returns `mean_cosine` divided by the mean of the measured ceilings."""
    ceilings = before_collapse(record, "gradient_cosine_ceiling", steps)
    return mean_cosine(record, steps) / float(np.nanmean(ceilings))


def alarm(records: list[dict], sign: str) -> dict | None:
    """Measures which collapses a threshold on one trace predicts, and how early.

    The seeds are split into two halves. A threshold is chosen on one half, so that a share of
    ALLOWED_FALSE_ALARM_SHARE of its stable runs exceeds the threshold. The threshold is then
    applied to the other half. The halves swap roles, and `false_alarms` is the mean of both. Only
    runs with S >= MIN_LAG_WITH_BOTH_OUTCOMES are used. The mean of a block is known at its end.

    Returns:
      `false_alarms`: the share of the stable runs with an alarm.
      `found`: the share of the collapsing runs with an alarm before the collapse.
      `median_lead`: the median of the learner steps from the alarm to the collapse. None if no
        collapsing run had an alarm.
      `n`: the number of collapsing runs.
      None if a half of the seeds has no stable run at such S, or no run collapses.
    """
    compared = _with_both_outcomes(records)
    traces = [before_collapse(record, sign) for record in compared]
    largest_values = np.array([np.fmax.reduce(trace) for trace in traces])
    collapsed = np.array([_collapsed(record) for record in compared], bool)
    seeds = np.array([record["seed"] for record in compared])
    half_of_run = np.searchsorted(np.unique(seeds), seeds) // max(len(np.unique(seeds)) // 2, 1) % 2
    if not collapsed.any() or set(half_of_run[~collapsed]) != {0, 1}:
        return None
    false_alarms, has_alarm, leads = [], [], []
    for judged_half in (0, 1):
        threshold = np.quantile(
            largest_values[~collapsed & (half_of_run != judged_half)], 1 - ALLOWED_FALSE_ALARM_SHARE
        )
        false_alarms.append(
            np.mean(largest_values[~collapsed & (half_of_run == judged_half)] > threshold)
        )
        for row in np.flatnonzero(collapsed & (half_of_run == judged_half)):
            alarm_blocks = np.flatnonzero(traces[row] > threshold)
            record, lead = compared[row], 0
            if alarm_blocks.size:
                known = record["trace_every"] * (int(alarm_blocks[0]) + 1)
                lead = record["collapse_step"] - known
            has_alarm.append(lead > 0)
            leads += [lead] if lead > 0 else []
    return {
        "false_alarms": float(np.mean(false_alarms)),
        "found": float(np.mean(has_alarm)),
        "median_lead": float(np.median(leads)) if leads else None,
        "n": len(has_alarm),
    }


def roc_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns P(positive > negative) over all pairs. A tie adds one half."""
    difference = positive[:, None] - negative[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def _collapsed(record: dict) -> bool:
    return record["collapse_step"] is not None


def _with_both_outcomes(records: list[dict]) -> list[dict]:
    return [record for record in records if record["max_lag"] >= MIN_LAG_WITH_BOTH_OUTCOMES]


def _median_cosines(records: list[dict]) -> dict[str, float | None]:
    return {
        name: float(np.median([cosine_of(record) for record in records])) if records else None
        for name, cosine_of in (("cosine", mean_cosine), ("relative", relative_cosine))
    }
