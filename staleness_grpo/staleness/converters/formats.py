"""Lists the formats that can be converted, with how each counts steps and versions."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from staleness_grpo.staleness.converters import samples
from staleness_grpo.staleness.converters.sources import records
from staleness_grpo.staleness.converters.statistics import Table
from staleness_grpo.staleness.trace import TraceError

Reader = Callable[[pathlib.Path, samples.Counts], Iterator[samples.Sample]]
VERL = "training/off_policy/trajectory_staleness"
AREAL = "version_stats/sample_staleness_theta"
LOOKED_AT = 200  # records that are looked at to tell which format a file has


@dataclasses.dataclass(frozen=True)
class Format:
    """Says what a file holds, and how its trainer counts."""

    about: str  # what is read
    sign: str  # a field, or the end of a column's name, that only this format has
    reader: Reader | None = None  # of samples whose versions are recorded
    table: Table | None = None  # of statistics, from which lags are drawn
    in_versions: bool = False  # versions are weight versions, not optimizer updates
    first_step: int | None = None  # None: 0 or 1, whichever the file begins with
    first_version: int = 0  # of the parameters before the first step
    gives_lags: bool = False  # versions are counted as steps are
    slots: bool = False  # groups are slots, from 0; lines may be in any order


def _extremes(prefix: str, mean: str = "mean") -> dict[str, str]:
    return {"mean": f"{prefix}{mean}", "least": f"{prefix}min", "most": f"{prefix}max"}


FORMATS = {
    "trace": Format("traces", "slot", samples.from_trace, first_step=0, slots=True),
    "run": Format(
        "metrics.jsonl of a run with metrics.lags=True",
        "lags",
        samples.from_run,
        gives_lags=True,
    ),
    "versions": Format("lines of step and version", "version", samples.from_versions, first_step=0),
    "ages": Format("lines of step and age", "age", samples.from_ages, gives_lags=True),
    "tinker": Format(
        "rollout summaries of tinker-cookbook",
        "sampling_client_step",
        samples.from_tinker,
        in_versions=True,
        first_step=0,
    ),
    "prime_rl": Format("traces of prime-rl", "traces", samples.from_prime_rl, first_step=1),
    "miles": Format(
        "samples of miles or slime",
        "rollout_id",
        samples.from_miles,
        in_versions=True,
        first_step=0,
        first_version=1,
    ),
    "verl": Format(
        "versions of each trajectory of verl",
        "min_global_steps",
        samples.from_verl,
        in_versions=True,
        first_step=1,
    ),
    "verl_metrics": Format(
        "metrics of verl; the newest version of each trajectory counts",
        f"{VERL}/mean",
        table=Table(_extremes(f"{VERL}/"), ("training/global_step",), are_quotients=True),
        in_versions=True,
    ),
    "verl_metrics_worst": Format(
        "metrics of verl; the oldest version of each trajectory counts",
        f"{VERL}_worst/mean",
        table=Table(_extremes(f"{VERL}_worst/"), ("training/global_step",), are_quotients=True),
        in_versions=True,
    ),
    "nemo_rl_metrics": Format(
        "metrics of NeMo-RL",
        "train/avg_trajectory_age",
        table=Table({"mean": "train/avg_trajectory_age"}),
        in_versions=True,
    ),
    "areal_metrics": Format(
        "metrics of AReaL",
        f"{AREAL}_avg",
        table=Table(_extremes(f"{AREAL}_", "avg"), averages_extremes=True),
        in_versions=True,
    ),
    "skyrl_metrics": Format(
        "metrics of SkyRL",
        "async/staleness_mean",
        table=Table(_extremes("async/staleness_"), ("trainer/global_step",)),
    ),
    "rlinf_metrics": Format(
        "metrics of RLinf",
        "train/actor/average_version",
        # The learner is one version behind `current_version`, which is the one that it makes.
        table=Table(
            {"average": "train/actor/average_version", "current": "train/actor/current_version"},
            mean=lambda values: values["current"] - 1 - values["average"],
        ),
        in_versions=True,
    ),
}


def recognized(path: pathlib.Path) -> list[str]:
    """Returns the formats whose sign is in the first records of a file, or of a folder's files."""
    paths = sorted(path.rglob("*.jsonl")) + sorted(path.rglob("*.csv")) if path.is_dir() else [path]
    names: set[str] = set()
    try:
        for number, record in enumerate(records(paths[:1], path)):
            data = record.fields.get("data")
            names |= set(record.fields) | set(data if isinstance(data, dict) else ())
            if number == LOOKED_AT:
                break
    except (TraceError, OSError):
        pass  # the names that were read before
    return [
        name
        for name, format_ in FORMATS.items()
        if any(field.endswith((f"/{format_.sign}", f"- {format_.sign}")) for field in names)
        or format_.sign in names
    ]
