"""Trains one policy by asynchronous GRPO, with a record of every learner step.

    python -m experiments.train --workdir=DIR [--config=FILE.py] [--config.lag.max_lag=16 ...]

An unfinished workdir goes on from its newest checkpoint. It ends with the records and parameters of
a run that was never broken off; records after the checkpoint are put aside and made again. SIGTERM
and Ctrl-C save and end with exit code 75. A run whose loss, gradient or parameters stop being
finite ends there, marked as collapsed in its last record and in summary.json; its policy is not
saved.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains what is left to train. Raises FieldError, FlagError or SystemExit; see `measure`."""
    from experiments.train.measure import measure

    measure(config, workdir)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the curves of a finished training."""
    from experiments.train import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(main, draw, several_processes=True)
