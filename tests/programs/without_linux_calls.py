"""Trains, and runs one cell of a sweep, without the calls of `os` that only Linux has.

    python -m tests.programs.without_linux_calls WORKDIR

Worker processes import this file too, so the calls are missing there as well.
"""

import os
import sys

LINUX_ONLY = (
    "sched_getaffinity",
    "sched_setaffinity",
    "fdatasync",
    "posix_fallocate",
    "posix_fadvise",
    "getrandom",
    "memfd_create",
    "eventfd",
    "pidfd_open",
    "splice",
    "copy_file_range",
)
for name in LINUX_ONLY:
    if hasattr(os, name):  # a system or version that lacks it
        delattr(os, name)

import tests.conftest  # noqa: E402, F401  strict JAX flags and the compile cache of the tests
from experiments.common import cli  # noqa: E402
from experiments.train.__main__ import draw, main  # noqa: E402
from staleness_grpo.sweeps.workers import run_cells  # noqa: E402
from tests.helpers.tiny import tiny_config  # noqa: E402

if __name__ == "__main__":
    fields = dict(name="arithmetic", num_terms=2, num_digits=1)
    config = tiny_config(**{"eval_every": 3, "task": fields, "warm_start.steps": 2})
    cli.execute(main, draw, config, sys.argv[1], cli.validate_on_this_machine)
    cells = run_cells({"cell": config}, max_lag=1, freeze_after=100, chunk_size=1, num_workers=1)
    print(*(cell["cell"] for cell in cells))
