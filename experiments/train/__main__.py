"""Trains one policy by asynchronous GRPO and records every learner step.

    python -m experiments.train --workdir=DIR [--config=FILE.py] [--config.lag.max_lag=16 ...]

A call on an unfinished workdir continues from the newest checkpoint. Records after this checkpoint
are moved to another file, and their steps are trained again. The final records and parameters equal
those of a run that was never interrupted. After SIGTERM or Ctrl-C the run saves a checkpoint and
ends with exit code 75.

A call with a larger `steps` makes a run longer, also a finished one. With lag, the run goes on from
a checkpoint at least S steps before its old end, because later ones lack rollouts.

The run stops early if its loss, gradient, update or parameters are no longer finite. Its last
record and summary.json then mark it as collapsed, and its policy is not saved.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains the remaining steps. Raises FieldError, FlagError or SystemExit, as `measure` does."""
    from experiments.train.measure import measure

    measure(config, workdir)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the curves of a finished training, and a page of its samples; returns their paths."""
    from experiments.train import figures, samples_page

    drawn = figures.draw(workdir)
    return drawn + samples_page.write(workdir, drawn[0])


if __name__ == "__main__":
    cli.run(main, draw, several_processes=True, steps_may_grow=True)
