"""Trains the cells of `small_sweep_config` that have no record in a folder yet.

python -m tests.programs.run_sweep_cells FOLDER
"""

import pathlib
import sys

from experiments.common import cli
from experiments.sweep import grid
from experiments.sweep.measure import run_map
from staleness_grpo.runtime import compile_cache
from tests.programs import small_sweep_config

if __name__ == "__main__":
    compile_cache.enable(cli.ROOT / ".cache" / "jax")
    (config,) = grid.variant_configs(small_sweep_config.get_config()).values()
    run_map(grid.MAIN, config, pathlib.Path(sys.argv[1]))
