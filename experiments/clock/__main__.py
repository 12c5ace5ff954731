"""Trains under each buffer rule for the same time on the clock of a simulated pipeline.

    python -m experiments.clock --workdir=DIR [--config.clock.seconds=6000 ...]

A training and a simulation run together. The simulation says when a group starts, under which
weights, and which groups a step learns from. The policy answers the group, and the lengths of its
responses are those of the simulation. So rules that discard slow groups change what is learned.

cells.jsonl has a line for each rule, lag bound S and seed. A call on an unfinished workdir makes
only the trainings that have no line yet.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run. Raises FieldError."""
    from experiments.clock import validation

    validation.validate(config)


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the trainings that have no record yet, then writes summary.json."""
    from experiments.clock.analysis import summarize
    from experiments.clock.measure import measure
    from experiments.common.claims import KEY
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    cells = measure(config, workdir)
    write_json(workdir / SUMMARY, summarize(cells) | {KEY: []})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records."""
    from experiments.clock import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(main, draw, default_config="experiments/configs/clock.py", validate=validate)
