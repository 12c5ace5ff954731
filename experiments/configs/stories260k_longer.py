"""Trains the most stale cells of the map of a language model for longer, until they learn.

    python -m experiments.sweep --config=experiments/configs/stories260k_longer.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER

FOLDER and task are those of `stories260k_map.py`. There, no learning rate is usable at S = 16 and
32 within 200 learner steps.

Hardware: 2 CPU cores, half an hour. The numbers to expect are in
experiments/results/stories260k_longer/summary.json.
"""

from ml_collections import ConfigDict

from experiments.configs import stories260k_map


def get_config() -> ConfigDict:
    """Returns a map of two lags, four learning rates and two seeds, of 600 learner steps."""
    config = stories260k_map.get_config()
    config.update(dict(steps=600, eval_every=20))
    config.sweep.update(
        dict(
            max_lags=(16, 32),
            learning_rates=(5e-5, 2e-4, 8e-4, 3.2e-3),
            seeds=(20, 21),
            horizons=(200, 600),
        )
    )
    config.variants = ConfigDict({})
    return config
