"""Measures the gradient bias of stale rollouts during training, where nothing can be enumerated.

    python -m experiments.paired_bias --workdir=DIR \\
        [--config=experiments/configs/stories260k_cpu.py ...]

It is for real models and real tasks. Each lag and learning rate of `config.paired` gets one
training, a workdir of `experiments.train` below DIR, with `metrics.paired_every` as in the config.
At those steps the current policy answers the batch again with the same noise, and the two gradients
are compared. cells.jsonl has one line for each training. A call on an unfinished workdir trains
what is missing.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.paired_bias.grid import validate


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what is missing, then summarizes."""
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.paired_bias.analysis import summarize
    from experiments.paired_bias.claims import claims
    from experiments.paired_bias.measure import measure
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    cells = measure(config, workdir)
    summary = summarize(cells)
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(cells, summary["slopes"]))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figure of a finished workdir from its records."""
    from experiments.paired_bias import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(main, draw, default_config="experiments/configs/paired_bias.py", validate=validate)
