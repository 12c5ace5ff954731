"""One asynchronous GRPO training: metrics.jsonl, one line per learner step, and summary.json.

    python -m experiments.train --workdir=DIR [--config=FILE.py] [--config.lag.max_lag=16 ...]

A finished workdir is left as it is. An unfinished one goes on from its newest checkpoint, and ends with the records and
parameters of a run that was never broken off; records after the checkpoint are put aside and made again. SIGTERM
and Ctrl-C save and end with exit code 75. A run whose loss, gradient or parameters stop being finite ends there, marked
as collapsed in its last record and in summary.json; its policy is not saved.
"""

import contextlib
import json
import pathlib
import sys

from ml_collections import ConfigDict

from experiments import cli
from staleness_grpo.config import ConfigError, FlagError


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, or goes on training, and writes the records as they come.

    Raises:
      FlagError: for an unusable checkpoint, and for problems that are not those of the results there.
    """
    import jax

    from experiments.workdir import check_problems
    from staleness_grpo import checkpoint, metrics, train
    from staleness_grpo.preemption import EXIT_CODE, Preemption
    from staleness_grpo.tasks import make_task

    task = make_task(config.task, config.policy.checkpoint)
    problems = getattr(task, "fingerprint", None)  # tasks of text have one
    check_problems(workdir, config, problems)
    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    with Preemption() as preemption, contextlib.ExitStack() as stack:
        first = jax.process_index() == 0  # of several processes the one that writes the records
        run = stack.enter_context(contextlib.closing(train.build(config, task)))  # may refuse the policy's checkpoint
        if first:
            metrics.write_run_files(workdir, config, problems)
        checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config)
        records = resume(run, checkpoints, workdir)
        writer = metrics.MetricsWriter(workdir / "metrics.jsonl", num_kept=len(records)) if first else None
        with metrics.Progress("learner steps", config.steps, done=len(records)) as progress:
            for record in train.train(run, config, checkpoints, preemption):
                if writer is not None:
                    writer.write(record)
                records.append(metrics.plain(record))
                progress.advance(f"reward {record['reward']:.3f}  lag {record['lag_max']}")
        if writer is not None:
            writer.close()
        if run.step < config.steps and not (records and records[-1]["collapsed"]):
            print(f"saved before step {run.step}; the same command goes on from there", file=sys.stderr)
            sys.exit(EXIT_CODE)
        summary = summarize(records)
        if not summary["collapsed"]:
            summary["final_eval_reward"] = run.generator.evaluate(run.state.params, config.steps)["eval_reward"]
        if config.save_policy and not summary["collapsed"]:
            save_policy(run, config, workdir / "policy")
        elif config.save_policy and first:
            print(f"{workdir}: the run collapsed, so its policy is not saved; its checkpoints stay", file=sys.stderr)
        if first:
            metrics.write_json(workdir / "summary.json", summary)
    if first:
        print(f"{workdir / 'summary.json'}: {summary}")


def resume(run, checkpoints, workdir: pathlib.Path) -> list[dict]:
    """Puts the newest checkpoint into the run; returns the records before it. Raises FlagError."""

    def refuse(reason, mend):
        return FlagError("workdir", workdir, f"{reason}: {mend}")

    checkpoints.restore(run, refuse)
    if not run.step:
        return []
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines()[: run.step] if path.exists() else []
    if len(lines) < run.step:
        raise refuse(
            f"metrics.jsonl has {len(lines)} records, the checkpoint comes after {run.step}",
            "put the whole file back, or give another folder",
        )
    return [json.loads(line) for line in lines]


def save_policy(run, config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the policy. Raises ConfigError if the checkpoint that it goes on from is no longer there."""
    from staleness_grpo.policy import huggingface
    from staleness_grpo.policy.huggingface_config import CheckpointError

    source, task = config.policy.checkpoint, run.generator.task
    tokens = dict(end_token=task.end_token, pad_token=task.pad_token)
    try:
        huggingface.save(folder, run.generator.policy, run.state.params, source, **tokens)
    except CheckpointError as error:  # before summary.json, so that the same command does what is left
        mend = "then run the same command again: the training is done, its policy is not saved yet"
        raise ConfigError("policy.checkpoint", source, f"{error}; {mend}") from error


def summarize(records: list[dict]) -> dict:
    """What the records say at a glance; rewards of the current policy are sampled pass rates."""
    evaluated = [record["eval_reward"] for record in records if "eval_reward" in record]
    return {
        "learner_steps": len(records),
        "collapsed": records[-1]["collapsed"],
        "first_eval_reward": evaluated[0] if evaluated else None,
        "peak_eval_reward": max(evaluated, default=None),
        "final_eval_reward": None,
        "median_time_step": sorted(record["time_step"] for record in records)[len(records) // 2],
    }


if __name__ == "__main__":
    cli.run(main, several_processes=True)
