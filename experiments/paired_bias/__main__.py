"""Measures the gradient bias of stale rollouts during training, without enumerating responses.

    python -m experiments.paired_bias --workdir=DIR \\
        [--config=experiments/configs/stories260k_cpu.py ...]

It works for real models and real tasks. Each combination of a lag and a learning rate in
`config.paired` gets one training. The training's folder below DIR is a workdir of
`experiments.train`.

Every `metrics.paired_every` steps, the current policy answers the batch again with the same noise.
The stale and the fresh gradient are then compared. cells.jsonl has one line for each training.

A call on an unfinished workdir runs only the trainings that are not finished.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.paired_bias.grid import validate


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the trainings that are not finished, then writes summary.json."""
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
