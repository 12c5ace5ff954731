"""What two trainings that differ in their lag alone say: claims with intervals, from their records."""

import math

import numpy as np

TAIL = 5  # evaluations at the end of a run whose mean is its final reward


def evaluations(records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, rewards) of the evaluations of the current policy."""
    rows = [(record["step"], record["eval_reward"]) for record in records if "eval_reward" in record]
    return np.array([step for step, _ in rows]), np.array([reward for _, reward in rows])


def rate_interval(rate: float, n: int) -> list[float]:
    """Wilson's 95 % interval of a rate of successes in n trials."""
    z = 1.96
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [centre - half, centre + half]


def facts(synchronous: dict, stale: dict, responses: int) -> list[dict]:
    """Claims about the two runs; each is a dict with its config, records and summary.

    `responses` is the number of sampled responses of one evaluation. Intervals are of the sampling of responses;
    they say nothing about other seeds.
    """
    _, rewards = evaluations(synchronous["records"])
    _, stale_rewards = evaluations(stale["records"])
    n = min(TAIL, len(rewards), len(stale_rewards)) * responses
    final, stale_final = rewards[-TAIL:].mean(), stale_rewards[-TAIL:].mean()
    max_lag = stale["config"]["lag"]["max_lag"]
    eta = stale["config"]["optimizer"]["learning_rate"]
    lags = np.array([record["lag_max"] for record in stale["records"]])
    ratio_error = max(
        max(abs(record["ratio_max"] - 1), abs(record["ratio_q01"] - 1)) for record in synchronous["records"]
    )
    half = 1.96 * math.sqrt(final * (1 - final) / n + stale_final * (1 - stale_final) / n)
    loss = final - stale_final
    return [
        {
            "claim": f"S = 0, eta = {eta:g}: the pass rate rises from its warm start ({rewards[0]:.2f})",
            "measured": final,
            "interval": (interval := rate_interval(final, n)),
            "n": f"{n} responses, 1 seed",
            "holds": bool(interval[0] > rate_interval(rewards[0], responses)[1]),
        },
        {
            "claim": f"S = {max_lag}, same seed, prompts and noise: final pass rate",
            "measured": stale_final,
            "interval": rate_interval(stale_final, n),
            "n": f"{n} responses, 1 seed",
            "holds": True,
        },
        {
            "claim": f"At this learning rate a lag of {max_lag} costs final pass rate",
            "measured": loss,
            "interval": [loss - half, loss + half],
            "n": f"2 x {n} responses, 1 seed",
            "holds": bool(loss - half > 0),
        },
        {
            "claim": f"S = {max_lag}: highest pass rate on the way",
            "measured": stale_rewards.max(),
            "interval": rate_interval(stale_rewards.max(), responses),
            "n": f"{responses} responses, the largest of {len(stale_rewards)} evaluations",
            "holds": True,
        },
        {
            "claim": f"S = {max_lag}: the realised lag is min(t, S) at every step",
            "measured": float(np.mean(lags == np.minimum(np.arange(len(lags)), max_lag))),
            "interval": None,
            "n": f"{len(lags)} steps",
            "holds": bool(np.all(lags == np.minimum(np.arange(len(lags)), max_lag))),
        },
        {
            "claim": "S = 0: learner and sampler agree, the ratio is 1 (largest deviation, float32)",
            "measured": ratio_error,
            "interval": None,
            "n": f"{len(synchronous['records'])} steps",
            "holds": ratio_error < 1e-4,
        },
    ]
