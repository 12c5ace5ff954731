"""Computes the numbers of one simulation: times, lags, idle shares, and the ledger of tokens."""

from typing import Any

import numpy as np

from staleness_grpo.errors import require
from staleness_grpo.pipeline.simulation import Result

LENGTH_BINS = 5  # quantile bins of the response length, by which lags are averaged


def measure(result: Result, warm_up: int) -> dict[str, Any]:
    """Returns the numbers of a simulation, without its first `warm_up` learner steps.

    docs/metrics.md describes each. Shares of tokens are of the whole simulation, because a group's
    tokens belong to no single step.

    Args:
      result: the simulation.
      warm_up: learner steps that are left out, fewer than all.

    Raises:
      FieldError: the steps that are left take no time.
    """
    steps = result.steps[warm_up:]
    before = result.steps[warm_up - 1] if warm_up else None
    begin = before.free if before else 0.0
    seconds = steps[-1].free - begin
    hint = f"the {len(steps)} steps after the warm-up take no time: give more steps"
    require(seconds > 0, "steps", hint, len(result.steps))

    def per_second(name: str) -> float:
        """Returns how fast a sum over time grew."""
        return (getattr(steps[-1], name) - (getattr(before, name) if before else 0.0)) / seconds

    engines = result.cluster.engines
    num_slots = engines.count * engines.slots
    frees = [begin] + [step.free for step in steps[:-1]]
    waited = sum(step.start - free for step, free in zip(steps, frees, strict=True))
    return {
        "seconds_per_step": seconds / len(steps),
        **lags(result, warm_up),
        "engine_idle": 1 - per_second("busy_seconds") / num_slots,
        "engine_paused": per_second("paused_seconds"),
        "learner_idle": waited / seconds,
        "learner_publishing": sum(step.free - step.end for step in steps) / seconds,
        "ready_groups": per_second("ready_seconds"),
        **{f"{fate}_tokens": share for fate, share in ledger(result).items()},
        "num_responses": len(result.groups) * result.cluster.group_size,
    }


def ledger(result: Result) -> dict[str, float]:
    """Returns the shares of the generated tokens by what became of their groups.

    The shares add up to 1. Tokens of responses that have not ended count as `unfinished`.
    """
    tokens = dict.fromkeys(("trained", "discarded", "ready"), 0)
    for group in result.groups:
        if group.step is not None:
            tokens["trained"] += group.tokens
        elif group.is_discarded:
            tokens["discarded"] += group.tokens
        elif group.ready is not None:
            tokens["ready"] += group.tokens
    shares = {fate: count / result.num_tokens for fate, count in tokens.items()}
    return shares | {"unfinished": 1 - sum(shares.values())}


def lags(result: Result, warm_up: int) -> dict[str, Any]:
    """Returns the lags of groups and tokens, and how they go with the length."""
    groups = [group for step in result.steps[warm_up:] for group in step.groups]
    lag_B = np.repeat([group.lag for group in groups], result.cluster.group_size)
    responses = [response for group in groups for response in group.responses]
    length_B = np.array([response.length for response in responses])
    histogram = np.bincount([group.lag for group in groups])
    span_lags = [
        (group.lag + group.version - version, tokens)
        for group in groups
        for response in group.responses
        for version, tokens in response.spans
    ]
    token_lag, tokens = np.array(span_lags).T
    return {
        "lag_mean": float(lag_B.mean()),
        "lag_max": int(lag_B.max()),
        "lag_histogram": histogram.tolist(),
        "token_lag_mean": float(np.average(token_lag, weights=tokens)),
        "length_lag_correlation": correlation(length_B, lag_B),
        "lag_by_length": by_length(length_B, lag_B),
        "length_mean": float(length_B.mean()),
        "truncated_fraction": float(np.mean(length_B == result.cluster.lengths.limit)),
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Returns Pearson's correlation; None if one of the two is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def by_length(length_B: np.ndarray, lag_B: np.ndarray) -> list[list[float]]:
    """Returns [mean length, mean lag] of responses in quantile bins of their length."""
    order = np.argsort(length_B, kind="stable")
    bins = [part for part in np.array_split(order, LENGTH_BINS) if len(part)]
    return [[float(length_B[part].mean()), float(lag_B[part].mean())] for part in bins]


def timeline(result: Result, first: int, num_steps: int, max_slots: int) -> dict[str, Any]:
    """Returns what some slots and the learner did during a few learner steps.

    Args:
      result: the simulation.
      first: the first learner step that is shown.
      num_steps: learner steps that are shown.
      max_slots: slots that are shown, those of the first engines.

    Returns:
      A dictionary with the keys:

      - `begin`, `end`: the times that the picture spans, in seconds.
      - `slots`: [row, start, end, version, 1 if discarded] of each response, a row for each slot.
      - `learner`: [step, start, end, free] of each learner step.
    """
    steps = result.steps[first : first + num_steps]
    begin = result.steps[first - 1].free if first else 0.0
    end = steps[-1].free
    rows = []
    for group in result.groups:
        for response in group.responses:
            row = response.engine * result.cluster.engines.slots + response.slot
            stop = end if response.end is None else response.end
            # A response that waits for a slot has a row below 0.
            if 0 <= row < max_slots and response.start < end and stop > begin:
                kind = int(group.is_discarded)
                rows.append([row, response.start, stop, response.version, kind])
    learner = [[step.step, step.start, step.end, step.free] for step in steps]
    return {"begin": begin, "end": end, "slots": rows, "learner": learner}
