"""Trains `tiny_config` asynchronously in a workdir with uneven times, as `async_train` does.

    python -m tests.programs.async_train_tiny WORKDIR OVERRIDES

OVERRIDES are config fields by their dotted names, as JSON.
"""

import json
import os
import sys

from experiments.async_train.__main__ import draw, main, validate
from experiments.common import cli
from experiments.train import measure as training
from staleness_grpo.training.run import assemble_run
from tests.helpers.tiny import asynchronous_config
from tests.programs.asynchronous_runs import uneven


def assemble_uneven_run(*arguments):
    """Assembles a run whose generator and learner wait now and then, otherwise in each process."""
    run = assemble_run(*arguments)
    run.watch_with(uneven(os.getpid(), run.config, patience=0.2))
    return run


if __name__ == "__main__":
    workdir, overrides = sys.argv[1:]
    training.assemble_run = assemble_uneven_run
    cli.execute(main, draw, asynchronous_config(**json.loads(overrides)), workdir, validate)
