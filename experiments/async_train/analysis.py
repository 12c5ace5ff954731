"""Computes numbers from the records of an asynchronous training."""

import numpy as np
from ml_collections import ConfigDict

from experiments.async_train.prediction import predict
from experiments.train import analysis


def summarize(records: list[dict], config: ConfigDict) -> dict:
    """Returns the summary of a training, with the lags that the timing led to.

    `token_lag_mean` and `in_flight_share` are means over the learner steps; None if no weights
    changed in flight. `waiting_share` is the share of the time in which the learner waited for
    groups. `generation_share` is the share in which the generator worked. The first step, in which
    the programs are compiled, is left out of both. `simulated` compares the run with the simulated
    pipeline (`prediction.predict`).
    """
    groups_S = np.sum([record["lag_histogram"] for record in records], axis=0)
    lags = np.arange(len(groups_S))
    seconds, waiting, generation = (
        sum(record[name] for record in records[1:])
        for name in ("time_step", "time_waiting", "time_generation")
    )
    return analysis.summarize(records) | {
        "lag_mean": float(np.average(lags, weights=groups_S)),
        "lag_max": int(lags[groups_S > 0].max()),
        "lag_histogram": groups_S,
        **{name: _mean(records, name) for name in ("token_lag_mean", "in_flight_share")},
        "waiting_share": waiting / seconds if seconds else None,
        "generation_share": generation / seconds if seconds else None,
        "simulated": predict(records, config),
    }


def _mean(records: list[dict], name: str) -> float | None:
    """Returns the mean of a field that the records of some runs lack."""
    return float(np.mean([record[name] for record in records])) if name in records[0] else None
