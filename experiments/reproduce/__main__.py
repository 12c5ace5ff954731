"""Runs the experiments of its config one after the other and writes report.html.

    python -m experiments.reproduce --workdir=DIR

Jobs that are finished are skipped. The report is written anew after each job, so that a reader can
open it while the next one runs. The last line printed before the summary is the path of the report.
"""

import pathlib
import subprocess
import sys
import time

from ml_collections import ConfigDict

from experiments.common import cli, devices
from staleness_grpo.errors import FieldError, require

CHECKPOINT = "{checkpoint}"  # stands in a job's command for the folder in `config.checkpoint`


def validate(config: ConfigDict) -> None:
    """Refuses a config without jobs, or without the model that a job needs. Raises FieldError."""
    if not config.jobs:
        raise FieldError("jobs", "give one job or more", dict(config.jobs))
    if any(CHECKPOINT in word for job in config.jobs.values() for word in job):
        folder = config.checkpoint
        is_there = folder is not None and pathlib.Path(folder).is_dir()
        require(is_there, "checkpoint", "give the folder of the model that is trained", folder)


def command(job: tuple[str, ...], folder: pathlib.Path, checkpoint: str | None = None) -> list[str]:
    """Returns the command line of a job, without the interpreter."""
    module, *overrides = (word.replace(CHECKPOINT, checkpoint or "") for word in job)
    return ["-m", module, f"--workdir={folder}", *overrides]


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the jobs, each in its own process: one needs float64, and each gives its memory back."""
    from experiments.common import claims
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.reproduce import report
    from staleness_grpo.runtime.records import plain, write_json

    write_run_files(workdir, config)
    settings = plain(config.to_dict())
    seconds = {}
    for name, job in config.jobs.items():
        path, _ = report.write(workdir, settings, running=name)
        words = command(job, workdir / name, config.get("checkpoint"))
        print(f"== {name}: python {' '.join(words)}", flush=True)
        print(f"== so far: {path}", flush=True)
        start, finished = time.perf_counter(), (workdir / name / SUMMARY).exists()
        result = subprocess.run([sys.executable, *words], cwd=cli.ROOT, check=False)
        if result.returncode:
            print(f"{name} failed; its message is above", file=sys.stderr)
            sys.exit(result.returncode)
        taken = time.perf_counter() - start
        if not finished:  # a redrawn figure says nothing about the job's time
            seconds[name] = taken
        print(f"== {name}: {taken:.0f} s", flush=True)
    _, found = report.write(workdir, settings)
    summary = {"time_jobs": seconds, claims.KEY: claims.records(found)}
    write_json(workdir / SUMMARY, summary)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Writes the report of a finished workdir from its records."""
    from experiments.reproduce import report
    from staleness_grpo.runtime.records import read_json

    return [report.write(workdir, read_json(workdir / "config.json"))[0]]


if __name__ == "__main__":
    cli.run(
        main,
        draw,
        default_config="experiments/configs/reproduce.py",
        validate=validate,
        prepare=devices.leave_to_others,
    )
