"""Trains a map of S x eta of a small pretrained language model on a CPU.

    python -m experiments.sweep --config=experiments/configs/stories260k_map.py \
        --workdir=DIR --config.policy.checkpoint=FOLDER

FOLDER: config.json, model.safetensors and tokenizer.json of the Llama with 260k parameters, from
the tinyllamas family (MIT license).

The model continues the openings of stories. It is rewarded for each of sixteen words that it uses.

Hardware: 2 CPU cores, an hour. The numbers to expect are in
experiments/results/stories260k_map/summary.json.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns a map of seven lags, seven learning rates and three seeds, and a small cyclic map."""
    config = scaling_laws.get_config()
    config.update(dict(steps=200, eval_every=10, num_prompts=8, group_size=4))
    config.warm_start.steps = 0
    config.task = ConfigDict(dict(name="stories", rule="many_mentions", max_response_length=24))
    config.rewards.num_workers = 1
    config.checkpoint.save_every = 100
    config.sweep.update(
        dict(
            max_lags=(0, 1, 2, 4, 8, 16, 32),
            learning_rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
            seeds=(0, 1, 2),
            horizons=(100, 200),
        )
    )
    config.variants = ConfigDict(
        dict(
            cyclic=dict(
                lag=dict(schedule="cyclic"),
                sweep=dict(max_lags=(8, 32), learning_rates=(1e-3, 3e-3), seeds=(0, 1)),
            ),
        )
    )
    return config
