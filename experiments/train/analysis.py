"""Computes numbers from the records of one training."""

import numpy as np


def evaluations(records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the learner steps and the rewards of the evaluations of the current policy."""
    rows = [
        (record["step"], record["eval_reward"]) for record in records if "eval_reward" in record
    ]
    return np.array([step for step, _ in rows]), np.array([reward for _, reward in rows])


def summarize(records: list[dict]) -> dict:
    """Returns the summary of a training.

    The rewards are means over sampled responses of the current policy. `final_eval_reward` is None
    here, because no record has the reward of the policy after the last step. The caller sets it.
    """
    _, rewards = evaluations(records)
    seconds = sorted(record["time_step"] for record in records)
    alarms = [record["guard_alarm"] for record in records if "guard_alarm" in record]
    heldout = [record["heldout_reward"] for record in records if "heldout_reward" in record]
    return {
        "learner_steps": len(records),
        **({"first_heldout_reward": heldout[0], "final_heldout_reward": None} if heldout else {}),
        **({"guard_alarms": int(sum(alarms))} if alarms else {}),
        "collapsed": records[-1]["collapsed"],
        "first_eval_reward": float(rewards[0]) if len(rewards) else None,
        "peak_eval_reward": float(rewards.max()) if len(rewards) else None,
        "final_eval_reward": None,
        "median_time_step": seconds[len(seconds) // 2],
        "claims": [],
    }
