"""Trains a small map of S x eta from random policies: a start for a task of your own.

    python -m experiments.sweep --workdir=DIR --config=experiments/configs/small_map.py

Hardware: 2 CPU cores, some minutes. With --config.task.name=FILE.py:CLASS the task is your own.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns one map of 64 trainings of 100 learner steps, on a task with a hundred responses."""
    config = scaling_laws.get_config()
    config.update(dict(steps=100, num_prompts=16))
    config.warm_start.steps = 0
    config.optimizer.learning_rate = 1e-2
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=3, num_prompts=8)
    )
    config.sweep.update(
        dict(
            max_lags=(0, 1, 4, 16),
            learning_rates=(3e-3, 1e-2, 3e-2, 1e-1),
            seeds=(0, 1, 2, 3),
            horizons=(50, 100),
        )
    )
    config.variants = ConfigDict()
    return config
