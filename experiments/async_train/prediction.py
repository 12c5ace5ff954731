"""Predicts the lags and the speed of an asynchronous run with the simulated pipeline.

The simulation gets four numbers of the run: how long a call takes, how much that varies, how long
the learner takes, and how many calls a step has. It gets no lag and no waiting time. It knows no
checkpoints, before which the generator leaves its next call to the next version.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.pipeline.cluster import FINISH, LEARNER, Cluster, Engines
from staleness_grpo.pipeline.lengths import LOGNORMAL, Lengths
from staleness_grpo.pipeline.measures import measure
from staleness_grpo.pipeline.rules import make_rule
from staleness_grpo.pipeline.simulation import simulate

NORMAL_QUARTILES = 1.349  # distance of the quartiles of a normal distribution of variance 1
UNIT = 1e-5  # seconds of a simulated token: a call is one response whose tokens are its time


def predict(records: list[dict], config: ConfigDict) -> dict[str, Any] | None:
    """Returns predicted and measured numbers of a run; None for a run that is too short.

    One engine with one slot answers the calls, one after the other. A group of the simulation is a
    call of the run. The first S + 1 steps, in which programs are compiled, are left out.

    Args:
      records: the lines of the run's metrics.jsonl.
      config: the run's config.

    Returns:
      `call_seconds`, `call_spread` (of the logarithm) and `learner_seconds`: what the simulation
        gets.
      `predicted` and `measured`: `seconds_per_step`, `lag_mean` and `lag_shares`, the share of
        calls by lag.
      `misplaced_share`: half of the summed differences of the shares, which is 0 if they agree.
    """
    max_lag = config.lag.max_lag
    timed = records[max_lag + 1 :]
    if len(timed) < 2 * (max_lag + 1):
        return None
    at_once = config.sampler.batch_prompts or config.num_prompts
    num_calls = config.num_prompts // at_once
    generation = np.array([record["time_generation"] for record in timed])
    learning = np.array([record["time_step"] - record["time_waiting"] for record in timed])
    # Medians, because a run that was killed compiles again in a few of its steps.
    call_seconds, learner_seconds = np.median(generation) / num_calls, np.median(learning)
    low, high = np.quantile(np.log(generation[generation > 0]), [0.25, 0.75])
    # The time of a step's calls varies less than that of a single call.
    spread = float((high - low) / NORMAL_QUARTILES * np.sqrt(num_calls))
    tokens = max(call_seconds / UNIT, 1.0)
    cluster = Cluster(
        engines=Engines(count=1, slots=1, tokens_per_second=1 / UNIT, slowdown=0.0),
        lengths=Lengths(LOGNORMAL, mean=tokens, sigma=spread, correlation=0.0, limit=10**12),
        num_groups=num_calls,
        group_size=1,
        reward_seconds=0.0,
        step_seconds=float(learner_seconds),
        publish_seconds=0.0,
        publish_blocks=LEARNER,
        in_flight=FINISH,
    )
    rule = make_rule(config.asynchronous.admission, max_lag, num_calls)
    found = measure(simulate(cluster, rule, len(records), seed=0), warm_up=max_lag + 1)
    predicted = _shares(found["lag_histogram"], max_lag)
    if config.asynchronous.admission != "bounded":  # binds each call to the version of lag S
        predicted = np.eye(max_lag + 1)[max_lag]
    measured = _shares(np.sum([record["lag_histogram"] for record in timed], axis=0), max_lag)
    lags = np.arange(max_lag + 1)
    return {
        "call_seconds": call_seconds,
        "call_spread": spread,
        "learner_seconds": learner_seconds,
        "predicted": {
            "seconds_per_step": found["seconds_per_step"],
            "lag_mean": float(lags @ predicted),
            "lag_shares": predicted,
        },
        "measured": {
            "seconds_per_step": float(np.median([record["time_step"] for record in timed])),
            "lag_mean": float(lags @ measured),
            "lag_shares": measured,
        },
        "misplaced_share": float(np.abs(predicted - measured).sum() / 2),
    }


def _shares(histogram: np.ndarray, max_lag: int) -> np.ndarray:
    """Returns the share of each lag from 0 to S."""
    shares = np.zeros(max_lag + 1)
    shares[: len(histogram)] = histogram[: max_lag + 1]
    return shares / shares.sum()
