"""Trains one policy and writes its files into a workdir.

During the training it writes metrics.jsonl, samples.jsonl if asked for, and checkpoints. At the end
it writes summary.json.
"""

import contextlib
import json
import pathlib
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.common.contents import check_same, fingerprints
from experiments.common.workdir import SUMMARY, write_run_files
from experiments.train.analysis import summarize
from staleness_grpo.errors import FieldError, FlagError, counted
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.configured import as_decoder
from staleness_grpo.runtime.preemption import EXIT_CODE, Preemption, Stopped
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import Appender, plain, read_jsonl, write_json
from staleness_grpo.runtime.sinks import Sinks
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task
from staleness_grpo.training.checkpoint import Checkpoints, step_name
from staleness_grpo.training.guard import SCALE
from staleness_grpo.training.heldout import num_overlapping
from staleness_grpo.training.loop import Source, default_source, train
from staleness_grpo.training.rehearsal import rehearsed
from staleness_grpo.training.run import Run, assemble_run

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
Append = Callable[[dict[str, Any]], None]
# Opens what gives a run its groups, after the run was restored from a workdir.
OpenSource = Callable[[Run, pathlib.Path], contextlib.AbstractContextManager[Source]]


def synchronous(run: Run, workdir: pathlib.Path) -> contextlib.AbstractContextManager[Source]:
    """Opens the source of the synchronous loop."""
    del workdir
    return contextlib.nullcontext(default_source(run))


def measure(
    config: ConfigDict,
    workdir: pathlib.Path,
    open_source: OpenSource = synchronous,
    summary_of: Callable[[list[dict]], dict] | None = None,
    ends_early: Callable[[list[dict]], bool] = lambda records: False,
) -> None:
    """Starts or continues the training in a workdir, and writes each record after its step.

    Args:
      config: the training's config, which was validated.
      workdir: the folder of the training.
      open_source: opens what gives the run its groups.
      summary_of: makes summary.json of the records; unset: `analysis.summarize`.
      ends_early: is asked after each step whether the training ends here. It gets all records.

    Raises:
      FieldError: the policy's checkpoint cannot be used, or the workdir has results that were made
        with other problems.
      FlagError: a checkpoint in the workdir cannot be used.
      SystemExit: a signal asked the run to stop. The code is EXIT_CODE.
    """
    task = make_task(config.task, config.policy.checkpoint)
    contents = fingerprints(config, task)
    check_same(workdir, config, contents)
    _warn_of_end_token(task)
    if overlapping := num_overlapping(config, task):
        reason = f"{overlapping} problems of heldout.path are training problems too"
        print(f"{reason}: what they show is not held out", file=sys.stderr)
    # Of several processes, only one writes the records.
    writes_records = jax.process_index() == 0
    if writes_records:
        watch = f"python -m experiments.show {shlex.quote(str(workdir))} --follow"
        print(f"records: {workdir / METRICS}; to watch them: {watch}", file=sys.stderr)
    with Preemption() as preemption, contextlib.ExitStack() as stack:
        try:
            with rehearsed(config, task):
                run = assemble_run(config, task, preemption.requested_before_the_first_step)
        except Stopped:
            print("stopped in the warm start; run the same command to go on", file=sys.stderr)
            sys.exit(EXIT_CODE)
        stack.enter_context(contextlib.closing(run))
        if writes_records:
            write_run_files(workdir, config, contents)
        checkpoints = Checkpoints(workdir / "checkpoints", config)
        records = resume(run, checkpoints, workdir)
        source = stack.enter_context(open_source(run, workdir))
        append: Append = _discard
        append_sample: Append = _discard
        show: Append = _discard
        if writes_records:
            path = workdir / METRICS
            append = stack.enter_context(Appender(path, num_kept=len(records))).append
            append_sample = _sample_appender(stack, workdir / SAMPLES, run)
            show = stack.enter_context(Sinks(workdir, config.to_dict(), records)).append
        is_over = False
        with Progress("learner steps", config.steps, done=len(records)) as progress:
            for record in train(run, checkpoints, preemption, source):
                # Samples come first: then every step with a record has them.
                for sample in record.pop("samples", ()):
                    append_sample(sample)
                append(record)
                records.append(plain(record))
                show(records[-1])
                if writes_records and records[-1].get("guard_alarm"):
                    print(alarm_line(records[-1], config.guard), file=sys.stderr)
                progress.advance(f"reward {record['reward']:.3f}  lag {record['lag_max']}")
                if config.save_policy_every and run.step % config.save_policy_every == 0:
                    _save_policy_of_step(run, workdir)
                if is_over := ends_early(records):
                    break
        checkpoints.wait()
        is_over = is_over or bool(records and records[-1]["collapsed"])
        if run.step < config.steps and not is_over:
            hint = "run the same command to go on"
            saved = f"stopped before step {run.step}, and saved before step {checkpoints.latest}"
            print(f"{saved}; {hint}", file=sys.stderr)
            sys.exit(EXIT_CODE)
        summary = (summary_of or summarize)(records)
        if not is_over:
            final = run.generator.evaluate(run.state.params, config.steps)
            summary["final_eval_reward"] = final["eval_reward"]
            if run.heldout is not None:
                final = run.heldout.evaluate(run.state.params, config.steps)
                summary["final_heldout_reward"] = final["heldout_reward"]
                summary["final_heldout_pass_at"] = final["heldout_pass_at"]
        # The policy is saved before summary.json. If saving fails, the workdir is not finished, and
        # the same command tries again.
        if config.save_policy and not is_over:
            save_policy(run, workdir / "policy")
        elif config.save_policy and writes_records:
            reason = "the run collapsed, so its policy is not saved; its checkpoints are kept"
            print(f"{workdir}: {reason}", file=sys.stderr)
        if writes_records:
            write_json(workdir / SUMMARY, summary)
            print(_result_line(summary))


def _warn_of_end_token(task: Task) -> None:
    """Prints a line if the tokenizer's end token does not end a response."""
    tokenizer = getattr(task, "tokenizer", None)
    if tokenizer is None or tokenizer.eos_token in (None, *tokenizer.stop_tokens):
        return
    text = tokenizer.special_tokens["eos_token"]
    reason = f"the eos_token {text!r} of the tokenizer does not end a response"
    hint = "if it should, add its number to eos_token_id of generation_config.json"
    print(f"{reason}: {hint}", file=sys.stderr)


def alarm_line(record: dict[str, Any], guard: ConfigDict) -> str:
    """Returns one line about an alarm of the guard, from a record of metrics.jsonl."""
    average, scale = record["guard_average"], record["guard_scale"]
    # A number that is not finite is null in the record.
    is_finite = average is not None
    found = f"{average:.3g}, above guard.level={guard.level}" if is_finite else "not finite"
    action = "warn only"
    if guard.mode == SCALE:
        action = f"learning rate now {scale:.3g} of its schedule"
    return f"alarm at step {record['step']}: the average of (log ratio)^2 is {found}: {action}"


def _result_line(summary: dict[str, Any]) -> str:
    """Returns one line about the result of the training."""
    steps = counted(summary["learner_steps"], "learner step")
    if summary["collapsed"]:
        reason = "the loss, gradient, update or parameters were not finite"
        return f"collapsed after {steps}: {reason}"
    start, end = summary["first_eval_reward"], summary["final_eval_reward"]
    if end is None:
        return f"ended early after {steps}: its reward stayed low"
    rewards = f"reward {end:.3f}" if start is None else f"reward {start:.3f} -> {end:.3f}"
    return f"{rewards} after {steps}"


def _discard(record: dict[str, Any]) -> None:
    """Ignores a record. Processes that write no records pass their records to this function."""


def _sample_appender(stack: contextlib.ExitStack, path: pathlib.Path, run: Run) -> Append:
    """Opens samples.jsonl, and moves samples of steps that are trained again to another file."""
    if not run.config.metrics.samples_every and not path.exists():
        return _discard
    kept = (
        [sample for sample in read_jsonl(path) if sample["step"] < run.step]
        if path.exists()
        else []
    )
    return stack.enter_context(Appender(path, num_kept=len(kept))).append


def resume(run: Run, checkpoints: Checkpoints, workdir: pathlib.Path) -> list[dict]:
    """Loads the newest checkpoint into the run, if there is one.

    Returns:
      The records of the steps before the checkpoint.

    Raises:
      FlagError: the checkpoint cannot be used, or metrics.jsonl has not the records before it.
    """

    def refuse(reason: str, hint: str) -> FlagError:
        return FlagError("workdir", workdir, f"{reason}: {hint}")

    checkpoints.restore(run, refuse)
    if not run.step:
        return []
    path = workdir / METRICS
    lines = path.read_bytes().splitlines()[: run.step] if path.exists() else []
    hint = "restore the complete file, or give another folder"
    if len(lines) < run.step:
        reason = f"metrics.jsonl has {len(lines)} records, the checkpoint comes after {run.step}"
        raise refuse(reason, hint)
    records = [_record_of(line) for line in lines]
    for step, record in enumerate(records):
        if record.get("step") != step:
            reason = f"line {step + 1} of metrics.jsonl is not the record of step {step}"
            raise refuse(reason, hint)
    if jax.process_index() == 0:
        print(
            f"resuming from step {run.step}: {checkpoints.folder / step_name(run.step)}",
            file=sys.stderr,
        )
    return records


def _record_of(line: bytes) -> dict:
    """Returns the record on a line; an empty one if there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _save_policy_of_step(run: Run, workdir: pathlib.Path) -> None:
    """Writes the policy as it is now into a model folder that has its number of updates."""
    folder = workdir / f"policy_{run.step:08d}"
    partial = workdir / f"{folder.name}.partial"
    save_policy(run, partial)
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was broken off
        partial.rename(folder)


def save_policy(run: Run, folder: pathlib.Path) -> None:
    """Writes the policy as a model folder.

    Tokenizer and settings are copied from the checkpoint that the run started from, if any.

    Raises:
      FieldError: this checkpoint cannot be read, for example because it was deleted.
    """
    source, programs = run.config.policy.checkpoint, run.programs
    tokens: dict[str, Any] = dict(
        end_token=programs.task.end_token, pad_token=programs.task.pad_token
    )
    try:
        huggingface.save(folder, as_decoder(programs.policy), run.state.params, source, **tokens)
    except huggingface.ModelFolderError as error:
        state = "the training is done, but its policy is not saved yet"
        hint = f"{error}; then run the same command again: {state}"
        raise FieldError("policy.checkpoint", hint, source) from error
