"""A map of a text task: each cell is a training on the example of docs/own_task.md."""

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.configs import scaling_laws

COLORS = cli.ROOT / "docs" / "examples" / "colors.py"


def get_config() -> ConfigDict:
    """Returns a map of four cells, which compare gradients and have held-out problems.

    `policy.checkpoint` must be set to a model folder.
    """
    config = scaling_laws.get_config()
    config.update(dict(steps=12, num_prompts=4, group_size=4, eval_every=2))
    config.warm_start.steps = 0
    config.task = ConfigDict(dict(name=f"{COLORS}:Colors", max_response_length=4, repeat=4))
    config.heldout.update(dict(every=2, fraction=0.3))
    config.metrics.paired_every = 2
    config.rewards.num_workers = 1
    config.checkpoint.save_every = 2
    config.sweep.update(
        dict(max_lags=(0, 1), learning_rates=(1e-3, 1e-1), seeds=(0,), horizons=(12,))
    )
    config.variants = ConfigDict()
    return config
