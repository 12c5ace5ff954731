"""Sweeps a text task: each cell is a training of a byte model on the example of docs/own_task.md.

python -m tests.programs.sweep_of_text FOLDER MODEL [SHARE]

FOLDER is the workdir, MODEL a folder of `tests.helpers.byte_model.write`, SHARE as in --share.
"""

import pathlib
import sys

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.configs import scaling_laws
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid

COLORS = cli.ROOT / "docs" / "examples" / "colors.py"


def config_of(model: pathlib.Path, steps: int = 12) -> ConfigDict:
    """Returns a map of four cells, which compare gradients and have held-out problems."""
    config = scaling_laws.get_config()
    config.update(dict(steps=steps, num_prompts=4, group_size=4, eval_every=2))
    config.warm_start.steps = 0
    config.policy.checkpoint = str(model)
    config.task = ConfigDict(dict(name=f"{COLORS}:Colors", max_response_length=4, repeat=4))
    config.heldout.update(dict(every=2, fraction=0.3))
    config.metrics.paired_every = 2
    config.rewards.num_workers = 1
    config.checkpoint.save_every = 2
    config.sweep.update(
        dict(max_lags=(0, 1), learning_rates=(1e-3, 1e-1), seeds=(0,), horizons=(steps,))
    )
    config.variants = ConfigDict()
    return config


if __name__ == "__main__":
    folder, model, *share = sys.argv[1:]
    config = config_of(pathlib.Path(model))
    part = f"share-{share[0].replace('/', '-of-')}" if share else None
    cli.execute(
        lambda config, workdir: sweep.main(config, workdir, share[0] if share else None),
        sweep.draw,
        config,
        folder,
        grid.validate,
        part=part,
    )
