"""What foretells a collapse, and how long before: gradient cosines and threshold alarms."""

import numpy as np

EARLY = 50  # learner steps that an early sign is taken from
BOTH_KINDS = 4  # S from which stable and collapsing runs exist side by side, so that signs can be compared
FALSE_ALARMS = 0.1  # share of the stable runs that an alarm may go off in
# Traces whose rise might foretell a collapse.
SIGNS = ("gradient_cosine", "clip_fraction", "log_ratio_second_moment", "drift_from_behavior", "entropy")


def cosine(records: list[dict]) -> dict:
    """Consecutive-gradient cosine before the collapse, or the whole run: its median by S, and its ROC areas.

    An area is the probability that a collapsing run has a larger cosine than a stable one, within S >= BOTH_KINDS;
    `early` takes the first EARLY steps alone. `relative` is the mean cosine over the mean ceiling that the batches'
    noise sets (see `learner.make_cosine_ceiling`).
    """
    both = [r for r in records if r["max_lag"] >= BOTH_KINDS]
    collapsed = np.array([r["collapse_step"] is not None for r in both])
    areas = {}
    for name, of_run in (("", mean_cosine), ("relative_", relative_cosine)):
        for span, steps in (("whole", None), ("early", EARLY)):
            values = np.array([of_run(r, steps) for r in both])
            areas[name + span] = roc_area(values[collapsed], values[~collapsed])
    kinds = {"stable": False, "collapsed": True}
    by_lag = {}
    for lag in sorted({r["max_lag"] for r in records}):
        inside = [r for r in records if r["max_lag"] == lag]
        by_lag[str(lag)] = {
            kind: {
                name: float(np.median(values)) if values else None
                for name, of_run in (("cosine", mean_cosine), ("relative", relative_cosine))
                for values in [[of_run(r) for r in inside if (r["collapse_step"] is not None) == wanted]]
            }
            for kind, wanted in kinds.items()
        }
    return {"roc_area": areas, "median_by_lag": by_lag, "n": len(both)}


def before_collapse(record: dict, trace: str, steps: int | None = None) -> np.ndarray:
    """A trace up to the collapse, or to `steps` if that is earlier; one block at least."""
    every = record["trace_every"]
    end = record["steps_run"] if record["collapse_step"] is None else record["collapse_step"]
    end = end if steps is None else min(end, steps)
    return np.array(record["traces"][trace][: max(end // every, 1)], float)


def mean_cosine(record: dict, steps: int | None = None) -> float:
    """Mean cosine of consecutive gradients before the collapse."""
    return float(np.mean(before_collapse(record, "gradient_cosine", steps)))


def relative_cosine(record: dict, steps: int | None = None) -> float:
    """`mean_cosine` over the mean of the measured ceilings."""
    return mean_cosine(record, steps) / float(np.nanmean(before_collapse(record, "gradient_cosine_ceiling", steps)))


def alarm(records: list[dict], sign: str) -> dict:
    """How many collapses a threshold on one trace foretells, and how long before.

    The threshold is the highest that lets FALSE_ALARMS of the stable runs of one half of the seeds pass it; it is
    judged on the other half, and both halves are averaged. S >= BOTH_KINDS.
    """
    both = [r for r in records if r["max_lag"] >= BOTH_KINDS]
    traces = [before_collapse(r, sign) for r in both]
    highest = np.array([np.nanmax(trace) for trace in traces])
    collapsed = np.array([r["collapse_step"] is not None for r in both])
    seeds = np.array([r["seed"] for r in both])
    half = np.searchsorted(np.unique(seeds), seeds) // max(len(np.unique(seeds)) // 2, 1) % 2
    false_alarms, found, leads = [], [], []
    for judged in (0, 1):
        threshold = np.quantile(highest[~collapsed & (half != judged)], 1 - FALSE_ALARMS)
        false_alarms.append(np.mean(highest[~collapsed & (half == judged)] > threshold))
        for i in np.flatnonzero(collapsed & (half == judged)):
            above = np.flatnonzero(traces[i] > threshold)
            found.append(above.size > 0)
            if above.size:
                leads.append(both[i]["collapse_step"] - both[i]["trace_every"] * int(above[0]))
    return {
        "false_alarms": float(np.mean(false_alarms)),
        "found": float(np.mean(found)),
        "median_lead": float(np.median(leads)) if leads else None,
        "n": len(found),
    }


def roc_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(positive > negative), ties counted half."""
    difference = positive[:, None] - negative[None]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
