"""Writes records of ours as other trainers would have written them: names, units, kinds of file.

This is the inverse of the tables of the package, and shares no code with them. U is the number of
optimizer updates from one weight version to the next.
"""

import csv
import json
import math

import numpy as np


def records(num_steps=12, seed=0):
    """Returns records with the fields of our metrics.jsonl that matter, and some that do not."""
    random = np.random.default_rng(seed)
    made = []
    for step in range(num_steps):
        lags = random.integers(0, 4, 8) * 2  # a multiple of the U that the tests take
        ratio = np.exp(0.3 * random.standard_normal(50))
        record = {
            "step": step,
            "learning_rate": 1e-6 * (step + 1),
            "lag_mean": float(lags.mean()),
            "lag_max": int(lags.max()),
            "lag_histogram": np.bincount(lags, minlength=8).tolist(),
            "reward": float(random.random()),
            "entropy": float(2 + random.random()),
            "clip_fraction": float(random.random() / 3),
            "approx_kl": float((ratio - 1 - np.log(ratio)).mean()),
            "log_ratio_second_moment": float((np.log(ratio) ** 2).mean()),
            "ess": float(ratio.sum() ** 2 / (50 * (ratio**2).sum())),
            "grad_norm": float(1 + random.random()),
            "update_norm": float(1e-3 * random.random()),
            "gradient_cosine": None if step == 0 else 0.5,
            "collapsed": False,
        }
        if step % 4 == 0:
            record["eval_reward"] = float(random.random())
        made.append(record)
    made[5]["grad_norm"] = None  # was not finite
    return made


def json_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def table(path, rows, names=None):
    """Writes CSV as pandas does: floats for integers, nothing for absent cells."""
    names = names or list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            cells = [row.get(name) for name in names]
            writer.writerow(["" if cell is None else repr(float(cell)) for cell in cells])
    return path


def staleness_grpo(path, made, U):
    return json_lines(path, made)


def verl(path, made, U):
    lines = []
    for r in made:
        key = "training/off_policy/trajectory_staleness_worst"
        newest = "training/off_policy/trajectory_staleness"
        data = {
            "training/global_step": r["step"] + 1,
            "critic/score/mean": r["reward"],
            "critic/rewards/mean": r["reward"] - 0.25,
            "actor/lr": r["learning_rate"],
            "actor/grad_norm": r["grad_norm"],
            "actor/pg_clipfrac": 0.75 * r["clip_fraction"],
            "actor/pg_clipfrac_lower": 0.25 * r["clip_fraction"],
            "actor/ppo_kl": -0.5,
            "actor/entropy": r["entropy"],
            "rollout_corr/k3_kl": r["approx_kl"],
            "rollout_corr/kl": -0.5,
            "rollout_corr/rollout_is_eff_sample_size": 0.99,
            f"{key}/mean": r["lag_mean"] / U,
            f"{key}/max": r["lag_max"] / U,
            f"{newest}/mean": r["lag_mean"] / U / 2,
            f"{newest}/max": r["lag_max"] / U / 2,
        }
        lines.append({"step": r["step"] + 1, "data": data})
    return json_lines(path, lines)


def trl(path, made, U):
    """An evaluation at step n is of the policy after n updates, a training record of update n."""
    history = []
    for r in made:
        if "eval_reward" in r:
            history.append({"eval_reward": r["eval_reward"], "eval_loss": 0, "step": r["step"]})
        history.append(
            {
                "reward": r["reward"],
                "reward_std": 0.1,
                "learning_rate": r["learning_rate"],
                "grad_norm": math.nan if r["grad_norm"] is None else r["grad_norm"],
                "clip_ratio/region_mean": r["clip_fraction"],
                "kl": 7.0,
                "entropy": r["entropy"],
                "step": r["step"] + 1,
            }
        )
    history.append({"train_runtime": 3.5, "step": len(made)})
    document = {"global_step": len(made), "log_history": history, "best_metric": None}
    path.write_text(json.dumps(document, indent=2))
    return path


def prime_rl(path, made, U):
    """The orchestrator and the trainer each write a line for a step."""
    lines = []
    for r in made:
        step = {"step": r["step"] + 1, "time": 1.5}
        lines.append(
            step
            | {"reward/all/mean": r["reward"], "off_policy/dropped": 0.0}
            | {"off_policy/mean": r["lag_mean"], "off_policy/max": float(r["lag_max"])}
            | {"off_policy/in_flight/mean": 9.0}
        )
        lines.append(
            step
            | {"optim/lr": r["learning_rate"], "optim/grad_norm": r["grad_norm"]}
            | {"mismatch_kl/all/mean": r["approx_kl"], "entropy/all/mean": r["entropy"]}
            | {"is_masked/all/mean": r["clip_fraction"]}
        )
    return json_lines(path, lines)


def nemo_rl(path, made, U):
    """An export of W&B: the run's name before the column, one row for each step, from 1."""
    rows = [
        {
            "Step": r["step"] + 1,
            "my run - train/reward": r["reward"],
            "my run - train/reward__MIN": r["reward"] - 1,
            "my run - train/lr": r["learning_rate"],
            "my run - train/grad_norm": r["grad_norm"],
            "my run - train/avg_trajectory_age": r["lag_mean"] / U,
            "my run - train/gen_kl_error": 5.0,
        }
        for r in made
    ]
    return table(path, rows)


def areal(path, made, U):
    lines = [
        {
            "_step": r["step"],
            "ppo_actor/task_reward/avg": r["reward"],
            "ppo_actor/final_reward/avg": 0.0,
            "ppo_actor/update/lr": r["learning_rate"],
            "ppo_actor/update/grad_norm": r["grad_norm"],
            "ppo_actor/update/clip_ratio/avg": 0.5 * r["clip_fraction"],
            "ppo_actor/update/dual_clip_ratio/avg": 0.5 * r["clip_fraction"],
            "ppo_actor/update/entropy/avg": r["entropy"],
            "ppo_actor/update/version_stats/sample_staleness_theta_avg": r["lag_mean"] / U,
            "ppo_actor/update/version_stats/sample_staleness_proximal_avg": 0.0,
        }
        for r in made
    ]
    return json_lines(path, lines)


def skyrl(path, made, U):
    """Two rows for each step, as W&B exports them; `_step` counts the rows."""
    rows = []
    for r in made:
        step = r["step"] + 1
        rows.append(
            {
                "_step": len(rows),
                "trainer/global_step": step,
                "reward/avg_raw_reward": r["reward"],
                "async/staleness_mean": r["lag_mean"],
                "async/staleness_max": r["lag_max"],
                "async/staleness_ratio": 0.5,
            }
        )
        rows.append(
            {
                "_step": len(rows),
                "trainer/global_step": step,
                "policy/policy_lr": r["learning_rate"],
                "policy/raw_grad_norm": r["grad_norm"],
                "policy/loss_metrics/clip_ratio": r["clip_fraction"],
                "policy/policy_entropy": r["entropy"],
            }
        )
    return table(path, rows)


def tinker(path, made, U):
    """Steps are versions, so U is 1: the lag is how far the sampling client's step is behind."""
    lines = [
        {
            "step": r["step"],
            "progress/batch": r["step"],
            "env/all/reward/total": r["reward"],
            "optim/lr": r["learning_rate"],
            "optim/kl_sample_train_v1": -0.5,
            "optim/kl_sample_train_v2": r["log_ratio_second_moment"] / 2,
            "optim/entropy": 9.0,
            "sampling_client/step_mean": r["step"] - r["lag_mean"],
            "sampling_client/step_min": r["step"] - r["lag_max"],
            "sampling_client/step_max": r["step"],
        }
        for r in made
    ]
    return json_lines(path, lines)


ALL = (
    *("reward", "learning_rate", "grad_norm", "update_norm", "clip_fraction", "lag_mean"),
    *("lag_max", "approx_kl", "log_ratio_second_moment", "ess", "entropy", "eval_reward"),
)


def our_table(path, made, U):
    return table(path, made, ["step", *ALL])


_RATES = {"reward", "learning_rate", "grad_norm"}
_LAGS = {"lag_mean", "lag_max"}
# How a run is written, and the signals that the format carries.
TRAINERS = {
    "staleness_grpo": (staleness_grpo, set(ALL)),
    "verl": (verl, _RATES | _LAGS | {"clip_fraction", "approx_kl", "entropy"}),
    "trl": (trl, _RATES | {"clip_fraction", "entropy", "eval_reward"}),
    "prime_rl": (prime_rl, _RATES | _LAGS | {"clip_fraction", "approx_kl", "entropy"}),
    "nemo_rl": (nemo_rl, _RATES | {"lag_mean"}),
    "areal": (areal, _RATES | {"lag_mean", "clip_fraction", "entropy"}),
    "skyrl": (skyrl, _RATES | _LAGS | {"clip_fraction", "entropy"}),
    "tinker": (tinker, {"reward", "learning_rate", "log_ratio_second_moment"} | _LAGS),
    "csv": (our_table, set(ALL)),
}
IN_VERSIONS = {"verl", "nemo_rl", "areal", "tinker"}
