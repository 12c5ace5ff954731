"""Trains `tiny_config` in a workdir, as `experiments.train` does.

    python -m tests.programs.train_tiny WORKDIR OVERRIDES

OVERRIDES are config fields by their dotted names, as JSON.
"""

import json
import sys

import tests.conftest  # noqa: F401  strict JAX flags and the compile cache of the tests
from experiments.common import cli
from experiments.train.__main__ import draw, main
from tests.helpers.tiny import tiny_config

if __name__ == "__main__":
    workdir, overrides = sys.argv[1:]
    config = tiny_config(**json.loads(overrides))
    cli.execute(main, draw, config, workdir, cli.validate_on_this_machine)
