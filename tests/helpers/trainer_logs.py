"""Writes known lags in the form in which each trainer records them.

The shapes are those of the public sources that docs/traces.md names, and share no code with the
converters. In all of them `versions` has a policy version for each group of each recorded step,
both counted from 0.
"""

import json


def json_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def trace(folder, versions):
    lines = [
        {"step": step, "slot": slot, "behavior_version": version, "time": 0.5}
        for step, row in enumerate(versions)
        for slot, version in enumerate(row)
    ]
    return json_lines(folder / "trace.jsonl", lines[::-1])


def run(folder, versions):
    lines = [
        {"step": step, "loss": 0.1, "lags": [step - version for version in row]}
        for step, row in enumerate(versions)
    ]
    return json_lines(folder / "metrics.jsonl", lines)


def lines_of_versions(folder, versions):
    lines = [{"step": s, "version": float(v)} for s, row in enumerate(versions) for v in row]
    return json_lines(folder / "versions.jsonl", lines)


def lines_of_ages(folder, versions):
    lines = [{"step": s + 1, "age": s - v} for s, row in enumerate(versions) for v in row]
    return json_lines(folder / "ages.jsonl", lines)


def tinker_record(iteration, group, member, version, split="train"):
    return {
        "schema_version": 1,
        "split": split,
        "iteration": iteration,
        "group_idx": group,
        "traj_idx": member,
        "tags": ["math"],
        "sampling_client_step": version,
        "total_reward": 1.0,
        "steps": [{"step_idx": 0, "ob_len": 5, "ac_len": 2, "logs": {"text": "a\u2028b"}}],
    }


def tinker(folder, versions):
    for iteration, row in enumerate(versions):
        inside = folder / f"iteration_{iteration:06d}"
        records = [tinker_record(iteration, g, m, v) for g, v in enumerate(row) for m in range(2)]
        json_lines(inside / "train_rollout_summaries.jsonl", records)
        evaluated = [tinker_record(iteration, 0, 0, None, "eval/gsm8k")]
        json_lines(inside / "eval_gsm8k_rollout_summaries.jsonl", evaluated)
    return folder


def prime_rl_record(name, start, end, group, dispatched=1):
    policy = None if start is None else {"start": start, "end": end}
    work = {"type": "train", "step": dispatched}
    work |= {} if policy is None else {"policy": policy}
    return {
        "id": name,
        "env": {"id": "gsm8k"},
        "group": {"id": group},
        "run": {"type": "train", "id": "r", "work": work},
        "ok": True,
        "traces": [{"id": f"trace-{name}", "nodes": []}],
    }


def prime_rl(folder, versions):
    """Steps count from 1: batch s trains on version s - 1. Episodes of a group are not in a row."""
    for step, row in enumerate(versions, start=1):
        inside = folder / f"rollouts/step_{step}/train"
        records = [
            prime_rl_record(f"{step}-{g}-{m}", version, version + m, f"group-{step}-{g}")
            for m in range(2)
            for g, version in enumerate(row)
        ]
        for record in records:  # no span reaches beyond the version that the batch trains on
            policy = record["run"]["work"]["policy"]
            policy["end"] = min(policy["end"], step - 1)
        json_lines(inside / "effective/traces.jsonl", records)
        json_lines(inside / "all/traces.jsonl", [*records, prime_rl_record("x", 0, 0, "dropped")])
    return folder


def miles(folder, versions):
    """Versions count from 1 and are strings; samples are in dumps of whole rollouts."""
    for rollout, row in enumerate(versions):
        samples = [
            {
                "group_index": rollout * len(row) + group,
                "index": (rollout * len(row) + group) * 2 + member,
                "weight_versions": [str(version + 1)] * (1 + member),
                "status": "completed",
            }
            for group, version in enumerate(row)
            for member in range(2)
        ]
        json_lines(folder / f"{rollout}.jsonl", [{"rollout_id": rollout, "samples": samples}])
    return folder


def verl(folder, versions):
    """Steps count from 1: step s trains on version s - 1."""
    for step, row in enumerate(versions, start=1):
        records = [
            {
                "step": step,
                "uid": f"uid-{step}-{group}",
                "min_global_steps": version,
                "max_global_steps": version,
            }
            for group, version in enumerate(row)
            for _ in range(2)
        ]
        padding = {"step": step, "is_padding": True, "min_global_steps": None}
        json_lines(folder / f"{step}.jsonl", [*records, padding])
    return folder


RECORDED = {
    "trace": trace,
    "run": run,
    "versions": lines_of_versions,
    "ages": lines_of_ages,
    "tinker": tinker,
    "prime_rl": prime_rl,
    "miles": miles,
    "verl": verl,
}


def statistics_rows(name, lags):
    """Returns what a trainer logs of the lags of each step: a list of (step, fields)."""
    rows = []
    for number, row in enumerate(lags):
        mean, least, most = sum(row) / len(row), float(min(row)), float(max(row))
        step = number + 1
        if name.startswith("verl"):
            key = "training/off_policy/trajectory_staleness" + name.removeprefix("verl_metrics")
            fields = {f"{key}/mean": mean, f"{key}/min": least, f"{key}/max": most}
        elif name == "nemo_rl_metrics":
            fields = {"train/avg_trajectory_age": mean, "train/buffer_size": 4}
        elif name == "areal_metrics":
            step = number
            key = "ppo_actor/update/version_stats/sample_staleness_"
            fields = {f"{key}theta_avg": mean, f"{key}theta_min": least, f"{key}theta_max": most}
            fields[f"{key}proximal_avg"] = mean - 1
        elif name == "skyrl_metrics":
            key = "async/staleness_"
            fields = {f"{key}mean": mean, f"{key}min": least, f"{key}max": most}
            fields["async/staleness_ratio"] = 0.5
        else:
            assert name == "rlinf_metrics"
            current = number + 1.0  # the version that the update makes
            fields = {"train/actor/current_version": current}
            fields["train/actor/average_version"] = current - 1 - mean
        rows.append((step, fields))
    return rows
