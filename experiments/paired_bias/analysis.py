"""From trainings with paired comparisons to cells.jsonl and summary.json: the bias by lag, and the claims."""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.bias import paired

COMMAND = "python -m experiments.paired_bias --workdir=DIR"
CLIPPED = 0.1  # clip fraction from which a cell counts as clipped, the level of R_batch in the scaling laws
RESAMPLES = 1000


def cell_record(config: ConfigDict, records: list[dict], summary: dict) -> dict:
    """What one training says: the bias over all comparisons at its full lag, and how it went meanwhile.

    A training that collapses may end before its full lag, and its last comparison may not be finite: what cannot be
    estimated is NaN, and what is left out is counted.
    """
    max_lag = config.lag.max_lag
    compared = [r for r in records if "paired_gram" in r and r["lag_mean"] == max_lag]
    finite = [r for r in compared if np.all(np.isfinite(np.array(r["paired_gram"], float)))]
    found = (
        paired.estimate(np.array([r["paired_gram"] for r in finite])) if finite else paired.NO_ESTIMATE
    )
    drift = (
        [record["drift_from_behavior"] for record in finite]
        if config.metrics.parameter_drift
        else []
    )
    evaluations = [
        (record["step"], record["eval_reward"]) for record in records if "eval_reward" in record
    ]
    return {
        "max_lag": max_lag,
        "learning_rate": config.optimizer.learning_rate,
        "s_eta": max_lag * config.optimizer.learning_rate,
        **dataclasses.asdict(found),
        "num_comparisons": len(finite),
        "num_not_finite": len(compared) - len(finite),
        "num_reward_failures": sum(record.get("paired_reward_failures", 0) for record in finite),
        "first_step": finite[0]["step"] if finite else None,
        "clip_fraction": float(np.mean([record["clip_fraction"] for record in finite]))
        if finite
        else math.nan,
        "drift": float(np.sqrt(np.mean(np.square(drift)))) if drift else None,
        "collapsed": summary["collapsed"],
        "final_eval_reward": summary["final_eval_reward"],
        "eval_steps": [step for step, _ in evaluations],
        "eval_rewards": [reward for _, reward in evaluations],
    }


def summarize(cells: list[dict]) -> dict:
    """The cells side by side, and what they say of the law."""
    slopes = {
        name: slope(cells, name)
        for name in ("s_eta", "drift")
        if any(cell[name] is not None for cell in cells)
    }
    return {
        "by_cell": [
            {k: v for k, v in cell.items() if k not in ("eval_steps", "eval_rewards")}
            for cell in cells
        ],
        "slopes": slopes,
        "claims": claims(cells, slopes),
    }


def slope(cells: list[dict], abscissa: str) -> dict | None:
    """d log(bias norm) / d log(abscissa) over stale cells with a positive estimate, all and before clipping.

    By least squares, with a bootstrap over cells. None for fewer than four. An estimate that came out as 0 has no
    logarithm. Where the bias is small beside the noise, such cells are left out (`num_left_out`) and the ones beside
    them that came out too large stay, so that the slope is biased, towards 0 if that is at the small end.
    """
    stale = [
        cell for cell in cells if cell["max_lag"] > 0 and cell["bias_norm"] >= 0 and cell[abscissa]
    ]
    return {
        "all": _fit(stale, abscissa),
        "unclipped": _fit([c for c in stale if c["clip_fraction"] < CLIPPED], abscissa),
    }


def _fit(stale: list[dict], abscissa: str) -> dict | None:
    cells = [cell for cell in stale if cell["bias_norm"] > 0]
    if len(cells) < 4:
        return None
    x = np.log([cell[abscissa] for cell in cells])
    y = np.log([cell["bias_norm"] for cell in cells])
    rng = np.random.default_rng(0)
    slopes = [
        np.polyfit(x[rows], y[rows], 1)[0]
        for rows in rng.integers(len(x), size=(RESAMPLES, len(x)))
        if len(np.unique(x[rows])) > 1
    ]
    fitted = np.polyval(np.polyfit(x, y, 1), x)
    return {
        "slope": float(np.polyfit(x, y, 1)[0]),
        "interval": [float(bound) for bound in np.quantile(slopes, [0.025, 0.975])],
        "r_squared": float(1 - np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2)),
        "n": len(cells),
        "num_left_out": len(stale) - len(cells),
    }


def claims(cells: list[dict], slopes: dict) -> list[dict]:
    """What should hold, beside what was measured."""
    rows = []
    synchronous = [cell for cell in cells if cell["max_lag"] == 0]
    if any(cell["num_comparisons"] for cell in synchronous):
        largest = max(cell["bias_norm"] for cell in synchronous if cell["num_comparisons"])
        count = sum(cell["num_comparisons"] for cell in synchronous)
        rows.append(("the bias at lag 0 is exactly 0", "0", largest, None, count, largest == 0.0))
    for cell in synchronous:
        if len(cell["eval_rewards"]) < 2:
            continue
        first = cell["eval_rewards"][0]
        rows.append(
            (
                f"S = 0, eta = {cell['learning_rate']:g}: reward rises from {first:.3f}",
                "", cell["final_eval_reward"], None, len(cell["eval_rewards"]),
                not cell["collapsed"] and cell["final_eval_reward"] > first,
            )
        )  # fmt: skip
    for abscissa, name in (("s_eta", "S eta"), ("drift", "drift from the behavior policy")):
        found = slopes.get(abscissa, {}).get("unclipped")
        if found:
            low, high = found["interval"]
            left_out = (
                f" ({found['num_left_out']} more have an estimate of 0)"
                if found["num_left_out"]
                else ""
            )
            rows.append(
                (
                    f"slope of log bias against log {name}, cells with a clip fraction below {CLIPPED:g}{left_out}",
                    "1: bias of O(S eta)", found["slope"], found["interval"], found["n"], 0 < low <= 1 <= high,
                )
            )  # fmt: skip
    names = ("claim", "paper", "measured", "interval", "n", "holds")
    return [dict(zip(names, row, strict=True)) | {"command": COMMAND} for row in rows]
