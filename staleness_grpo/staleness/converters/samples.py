"""Reads trainers that record the policy version of each sample: nothing has to be drawn."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

from staleness_grpo.staleness.converters.sources import Record, files, records
from staleness_grpo.staleness.trace import HEADER, POSITION

Counts = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Holds what a trainer recorded of one sample, in the trainer's own units."""

    record: Record
    step: int
    oldest: int  # the first policy version that generated a part of the sample
    newest: int  # the last one
    group: int | str | None  # None: the trainer names no group, so the sample is one of its own
    member: int | str | None  # tells the samples of a group apart, where the trainer does


def from_trace(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads a trace: {"step": 3, "slot": 0, "behavior_version": 1}. `time` is left out.

    A change of weights within a group counts as a further sample of the group.
    """
    for record in records([path], path):
        if set(record.fields) == {HEADER}:
            continue
        step, version = record.integer("step"), record.integer("behavior_version")
        position = 0 if record.value(POSITION) is None else record.integer(POSITION)
        yield Sample(record, step, version, version, record.integer("slot"), position)


def from_run(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads the metrics.jsonl of a training of this project: {"step": 3, "lags": [2, 1]}."""
    for record in records([path], path):
        step, lags = record.integer("step"), record.fields.get("lags")
        if not isinstance(lags, list):
            hint = "train with metrics.lags=True"
            raise record.refuse(f"the field lags is not a list of integers: {hint}")
        for slot, lag in enumerate(lags):
            version = step - Record({"a lag": lag}, record.where).integer("a lag")
            yield Sample(record, step, version, version, slot, 0)


def from_versions(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads lines with the policy version of each group: {"step": 3, "version": 1}."""
    for record in records([path], path):
        step, version = record.integer("step"), record.integer("version")
        yield Sample(record, step, version, version, None, None)


def from_ages(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads lines with the lag of each group at the step that used it: {"step": 3, "age": 2}."""
    for record in records([path], path):
        step, age = record.integer("step"), record.integer("age")
        yield Sample(record, step, step - age, step - age, None, None)


def from_tinker(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads the rollout summaries of tinker-cookbook, one line for each trajectory.

    A folder has iteration_000003/train_rollout_summaries.jsonl for each iteration.
    """
    patterns = ("**/train_rollout_summaries.jsonl",)
    for record in records(files(path, patterns), path):
        if record.value("split") not in (None, "train"):
            counts["lines of other splits than train left out"] += 1
            continue
        schema = record.value("schema_version")
        if schema not in (None, 1):
            raise record.refuse(f"schema_version is {schema!r}, and only 1 is known")
        step, version = record.integer("iteration"), record.integer("sampling_client_step")
        group, member = record.integer("group_idx"), record.integer("traj_idx")
        yield Sample(record, step, version, version, group, member)


def from_prime_rl(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads the traces.jsonl of prime-rl, one line for each episode that a batch trained on.

    A folder has rollouts/step_3/train/effective/traces.jsonl for each step. The step is the
    folder's number: the record's own `run.work.step` is the step at which the episode began.
    """
    patterns = ("**/step_*/train/effective/traces.jsonl",)
    for record in records(files(path, patterns), path):
        work = record.inside("run", "work")
        if not work.fields:  # the name of the object in some versions
            work = record.inside("run", "metadata")
        if work.value("type") == "eval" or record.inside("run").value("type") == "eval":
            counts["episodes of evaluations left out"] += 1
            continue
        info, policy = record.inside("info"), work.inside("policy")
        if policy.fields:
            oldest, newest = policy.integer("start"), policy.integer("end")
        elif info.value("policy_version") is not None:
            oldest = newest = info.integer("policy_version")
        elif work.value("type") == "train":
            counts["episodes of frozen policies left out"] += 1
            continue
        else:
            raise record.refuse("the field run.work.policy is absent")
        group = record.inside("group").name("id")
        group = info.name("group_id") if group is None else group
        step = record.folder_step
        if step is None:
            raise record.refuse("no folder step_N above the file gives the step: keep the folders")
        yield Sample(record, step, oldest, newest, group, record.name("id"))


def from_miles(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads the samples of miles or slime: {"rollout_id": 3, "group_index": 0, ...}.

    `weight_versions` lists the version of each generation call, as strings. A line may also be a
    whole rollout, {"rollout_id": 3, "samples": [...]}.
    """
    for record in records(files(path, ("**/*.jsonl",)), path):
        rollout = record.integer("rollout_id")
        samples = record.fields.get("samples", [record.fields])
        if not isinstance(samples, list) or not all(isinstance(each, dict) for each in samples):
            raise record.refuse("the field samples is not a list of objects")
        for fields in samples:
            sample = dataclasses.replace(record, fields=fields)
            calls = fields.get("weight_versions")
            if not isinstance(calls, list) or not calls:
                raise record.refuse(f"weight_versions is {calls!r}, not a list of versions")
            versions = [
                dataclasses.replace(record, fields={"a weight version": call}).integer(
                    "a weight version"
                )
                for call in calls
            ]
            if versions != sorted(versions):
                raise record.refuse(f"weight_versions {versions} go backwards")
            group, member = sample.integer("group_index"), sample.integer("index")
            yield Sample(record, rollout, versions[0], versions[-1], group, member)


def from_verl(path: pathlib.Path, counts: Counts) -> Iterator[Sample]:
    """Reads verl's versions of each trajectory, written as JSON lines.

    A line is {"step": 3, "uid": "a", "min_global_steps": 1, "max_global_steps": 2}.
    """
    for record in records(files(path, ("**/*.jsonl",)), path):
        if record.value("is_padding"):
            counts["padding left out"] += 1
            continue
        oldest, newest = record.integer("min_global_steps"), record.integer("max_global_steps")
        yield Sample(record, record.integer("step"), oldest, newest, record.name("uid"), None)
