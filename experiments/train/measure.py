"""Trains into a workdir: metrics.jsonl as it goes, checkpoints, and summary.json at the end."""

import contextlib
import json
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.common.workdir import SUMMARY, check_problems, write_run_files
from experiments.train.analysis import summarize
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.policy import huggingface
from staleness_grpo.runtime.preemption import EXIT_CODE, Preemption
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import Appender, plain, write_json
from staleness_grpo.tasks import make_task
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.loop import train
from staleness_grpo.training.run import Run, build_run


def measure(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains, or goes on training, and writes the records as they come.

    Raises:
      FieldError: the policy's checkpoint cannot be used, or the problems are not those of the
        results that are there.
      FlagError: a checkpoint of the run cannot be used.
      SystemExit: with EXIT_CODE, when a signal asked the run to stop.
    """
    task = make_task(config.task, config.policy.checkpoint)
    problems = getattr(task, "fingerprint", None)  # text tasks have one
    check_problems(workdir, config, problems)
    first = jax.process_index() == 0  # of several processes, the one that writes the records
    with Preemption() as preemption, contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(build_run(config, task)))
        if first:
            write_run_files(workdir, config, problems)
        checkpoints = Checkpoints(workdir / "checkpoints", config)
        records = resume(run, checkpoints, workdir)
        append = _ignore
        if first:
            path = workdir / "metrics.jsonl"
            append = stack.enter_context(Appender(path, num_kept=len(records))).append
        with Progress("learner steps", config.steps, done=len(records)) as progress:
            for record in train(run, checkpoints, preemption):
                append(record)
                records.append(plain(record))
                progress.advance(f"reward {record['reward']:.3f}  lag {record['lag_max']}")
        if run.step < config.steps and not (records and records[-1]["collapsed"]):
            print(f"saved before step {run.step}; run the same command to go on", file=sys.stderr)
            sys.exit(EXIT_CODE)
        summary = summarize(records)
        if not summary["collapsed"]:
            final = run.generator.evaluate(run.state.params, config.steps)
            summary["final_eval_reward"] = final["eval_reward"]
        # Before summary.json, so that the same command does what is left if this fails.
        if config.save_policy and not summary["collapsed"]:
            save_policy(run, workdir / "policy")
        elif config.save_policy and first:
            reason = "the run collapsed, so its policy is not saved; its checkpoints stay"
            print(f"{workdir}: {reason}", file=sys.stderr)
        if first:
            write_json(workdir / SUMMARY, summary)
            print(_ending(summary))


def _ending(summary: dict[str, Any]) -> str:
    """Returns how the training went, in a sentence."""
    steps = summary["learner_steps"]
    if summary["collapsed"]:
        return f"collapsed after {steps} learner steps: something was not finite"
    start, end = summary["first_eval_reward"], summary["final_eval_reward"]
    rise = f"reward {end:.3f}" if start is None else f"reward {start:.3f} -> {end:.3f}"
    return f"{rise} after {steps} learner steps"


def _ignore(record: dict[str, Any]) -> None:
    """Takes the records of a process that does not write them."""


def resume(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path) -> list[dict]:
    """Puts the newest checkpoint into the run; returns the records before it. Raises FlagError."""

    def refuse(reason: str, hint: str) -> FlagError:
        return FlagError("workdir", workdir, f"{reason}: {hint}")

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


def save_policy(run: Run, folder: pathlib.Path) -> None:
    """Writes the policy as a model folder.

    Raises:
      FieldError: the checkpoint that the run started from, whose files are copied, is gone.
    """
    source, programs = run.config.policy.checkpoint, run.programs
    tokens: dict[str, Any] = dict(
        end_token=programs.task.end_token, pad_token=programs.task.pad_token
    )
    try:
        huggingface.save(folder, programs.policy, run.state.params, source, **tokens)
    except huggingface.ModelFolderError as error:
        rest = "the training is done, its policy is not saved yet"
        hint = f"{error}; then run the same command again: {rest}"
        raise FieldError("policy.checkpoint", hint, source) from error
