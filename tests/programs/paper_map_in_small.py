"""Runs the paper's map with a small model of the same family, on the devices that there are.

    python -m tests.programs.paper_map_in_small WORKDIR MODEL PROBLEMS

MODEL is a model folder with a tokenizer, PROBLEMS a file of problems as GSM8K has them. The config
is that of paper_map_1b.py, with its mesh, schedules, verifier and chat, on a grid of a few steps.
"""

import pathlib
import sys

from experiments.common import cli
from experiments.configs import paper_map_1b
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid

if __name__ == "__main__":
    workdir, model, problems = sys.argv[1:]
    config = paper_map_1b.get_config()
    config.policy.checkpoint, config.task.path = model, problems
    config.update(dict(steps=4, eval_every=2, num_prompts=8, group_size=2, microbatch_prompts=0))
    config.task.max_response_length = 4
    config.rewards.num_workers = 1
    config.sweep.update(
        dict(max_lags=(0, 2), learning_rates=(1e-6,), seeds=(0,), horizons=(4,), freeze_after=4)
    )
    config.variants.constant.sweep.update(dict(max_lags=(2,), seeds=(0,)))
    grid.validate(config)
    cli.complete(sweep.main, sweep.draw, config, pathlib.Path(workdir))
