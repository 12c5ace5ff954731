"""Computes numbers from the records of one training."""

import numpy as np


def evaluations(records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, rewards) of the evaluations of the current policy."""
    rows = [
        (record["step"], record["eval_reward"]) for record in records if "eval_reward" in record
    ]
    return np.array([step for step, _ in rows]), np.array([reward for _, reward in rows])


def summarize(records: list[dict]) -> dict:
    """Returns the summary of a training; rewards of the current policy are sampled means.

    `final_eval_reward` is left unset: it is that of the policy after the last record.
    """
    _, rewards = evaluations(records)
    seconds = sorted(record["time_step"] for record in records)
    return {
        "learner_steps": len(records),
        "collapsed": records[-1]["collapsed"],
        "first_eval_reward": float(rewards[0]) if len(rewards) else None,
        "peak_eval_reward": float(rewards.max()) if len(rewards) else None,
        "final_eval_reward": None,
        "median_time_step": seconds[len(seconds) // 2],
        "claims": [],
    }
