"""Puts trainings that differ in their seed alone together, and averages their records."""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from experiments.common.reading import KINDS, Workdir
from experiments.train.figures import column, running_mean
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import flattened, read_jsonl

SEED = "seed"
LEVEL = 0.95  # of the intervals
# Fields that change no record, so runs that differ in them alone are of one kind. A training does
# not read the sections of other commands.
WITHOUT_EFFECT = (
    *("checkpoint.", "sinks.", "metrics.samples_every", "metrics.num_samples", "variants."),
    *(f"{section}." for section in KINDS),
)
UNSMOOTHED = ("eval_reward",)  # a mean over many responses already


@dataclasses.dataclass(frozen=True)
class Kind:
    """Holds the trainings of one config, which differ in their seed alone."""

    label: str
    runs: list[list[dict]]  # the records of each training


@dataclasses.dataclass(frozen=True)
class Curve:
    """Holds the mean of one metric over the trainings of a kind, by learner step."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None  # pointwise interval for the mean over seeds; None with one training
    high: np.ndarray | None


def kinds(workdirs: list[Workdir]) -> list[Kind]:
    """Returns the kinds of trainings, in the order in which they were given.

    A label has the fields in which the kinds differ. With one kind it has the number of seeds.

    Raises:
      FlagError: a folder holds no training, has no record yet, or is there twice by its config.
    """
    by_config: dict[str, dict[Any, Workdir]] = {}
    fields: dict[str, dict[str, Any]] = {}
    for workdir in workdirs:
        if not workdir.is_training:
            hint = f"this folder is of {workdir.command}: give folders of experiments.train"
            raise refusal(workdir, hint)
        flat = {
            name: value
            for name, value in flattened(workdir.config).items()
            if not name.startswith(WITHOUT_EFFECT)
        }
        seed = flat.pop(SEED, None)
        key = repr(sorted(flat.items()))
        same = by_config.setdefault(key, {})
        if seed in same:
            hint = f"{same[seed].folder} has the same config and seed: give one of the two"
            raise refusal(workdir, hint)
        same[seed], fields[key] = workdir, flat
    labels = differences(list(fields.values()))
    return [
        Kind(_label(label, len(same)), [_records(workdir) for workdir in same.values()])
        for label, same in zip(labels, by_config.values(), strict=True)
    ]


def refusal(workdir: Workdir, hint: str) -> FlagError:
    """Returns the error about one of the folders."""
    return FlagError.of_variable("WORKDIR", str(workdir.folder), hint)


def differences(configs: list[dict[str, Any]]) -> list[str]:
    """Returns for each flat config the fields in which not all are equal, as text."""
    names = sorted({name for config in configs for name in config})
    absent = object()
    differing = [
        name for name in names if len({repr(config.get(name, absent)) for config in configs}) > 1
    ]
    return [
        ", ".join(f"{name} = {config.get(name, 'unset')}" for name in differing)
        for config in configs
    ]


def _label(fields: str, num_seeds: int) -> str:
    seeds = f"{num_seeds} seeds" if num_seeds > 1 else ""
    return f"{fields} ({seeds})" if fields and seeds else fields or seeds or "one training"


def _records(workdir: Workdir) -> list[dict]:
    path = workdir.folder / "metrics.jsonl"
    records = read_jsonl(path) if path.exists() else []
    if not records:
        raise refusal(workdir, "it has no record yet: wait, or leave it out")
    return records


def curve(runs: list[list[dict]], name: str) -> Curve | None:
    """Returns the mean of a metric over trainings, at the steps that all of them have.

    A metric of every step is smoothed first by a running mean. The interval is that of Student's t
    for the mean over seeds, at each step on its own. It needs two trainings and holds if the means
    of seeds are about normal. With few seeds a bootstrap would be too narrow.

    The curve ends where the first training ends, for example by a collapse. A mean over those that
    are left would hide the collapse.

    Returns:
      None if one of the trainings lacks the metric.
    """
    by_step: list[dict[int, float]] = []
    for records in runs:
        measured = [record for record in records if name in record]
        if not measured:
            return None
        values = column(measured, name)
        if name not in UNSMOOTHED:
            values = running_mean(values)
        steps = [record["step"] for record in measured]
        by_step.append(dict(zip(steps, values, strict=True)))
    shared = np.array(sorted(set.intersection(*(set(values) for values in by_step))))
    values_OxX = np.array([[values[step] for step in shared] for values in by_step])  # O: seeds
    mean = values_OxX.mean(axis=0)
    if len(runs) == 1:
        return Curve(shared, mean, None, None)
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(runs) - 1)
    half = quantile * values_OxX.std(axis=0, ddof=1) / np.sqrt(len(runs))
    return Curve(shared, mean, mean - half, mean + half)


def notes(kind: Kind) -> list[str]:
    """Returns what a reader of the figure must know about a kind beside its label."""
    lengths = [records[-1]["step"] + 1 for records in kind.runs]
    collapsed = sum(bool(records[-1].get("collapsed")) for records in kind.runs)
    found = []
    if collapsed:
        found.append(f"{collapsed} of {len(kind.runs)} collapsed")
    if len(set(lengths)) > 1:
        found.append(
            f"drawn up to step {min(lengths) - 1}, the end of the shortest; "
            f"the longest has {max(lengths)} steps"
        )
    return found
