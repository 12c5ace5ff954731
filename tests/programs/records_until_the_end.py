"""An experiment that writes one record for each step, and has a bug with seed 13.

python -m tests.programs.records_until_the_end --workdir=DIR [--config.steps=N]
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.workdir import SUMMARY, write_run_files
from staleness_grpo.runtime.records import Appender, write_json


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes records of about 120 bytes, and a summary."""
    write_run_files(workdir, config)
    with Appender(workdir / "metrics.jsonl", num_kept=0) as file:
        for step in range(config.steps):
            file.append({"step": step, "padding": "x" * 100})
    if config.seed == 13:
        raise ZeroDivisionError("a mistake of the program itself")
    write_json(workdir / SUMMARY, {"steps": config.steps, "claims": []})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws a figure in name only."""
    (workdir / "figure.png").write_bytes((workdir / "metrics.jsonl").read_bytes()[:8])
    return [workdir / "figure.png"]


if __name__ == "__main__":
    cli.run(
        main, draw, default_config="tests/programs/default_config.py", validate=lambda config: None
    )
