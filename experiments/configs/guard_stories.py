"""Measures what the guard does for a small pretrained language model.

    python -m experiments.guard --config=experiments/configs/guard_stories.py --workdir=DIR \
        --config.policy.checkpoint=FOLDER

FOLDER and task are those of `stories260k_map.py`. The level of the alarm was chosen on sums of two
numbers, and is the same here.

The cells and the criteria were in the repository before any of these trainings ran:
docs/log/2026-11-30-plan-of-the-guard-on-a-language-model.md.

Hardware: 2 CPU cores, half an hour. The numbers to expect are in
experiments/results/guard_stories/summary.json.
"""

from ml_collections import ConfigDict

from experiments.configs import stories260k_map


def get_config() -> ConfigDict:
    """Returns four settings of the map, one beyond its boundary, with each mode of the guard."""
    config = stories260k_map.get_config()
    config.sweep.update(
        dict(
            max_lags=(0, 8),
            learning_rates=(3e-4, 3e-3),
            seeds=(10, 11, 12, 13, 14),
            horizons=(200,),
        )
    )
    config.variants = ConfigDict(
        dict(warn=dict(guard=dict(mode="warn")), scale=dict(guard=dict(mode="scale")))
    )
    return config
