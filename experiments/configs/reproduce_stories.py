"""Runs the two main experiments, and the same map for a small pretrained language model.

    bash launch/reproduce.sh --preset=stories --config.checkpoint=FOLDER

FOLDER: config.json, model.safetensors and tokenizer.json of the Llama with 260k parameters, from
the tinyllamas family (MIT license).

Hardware: 2 CPU cores, about two hours.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import reproduce


def get_config() -> ConfigDict:
    """Returns the default jobs, and the map of stories260k with comparisons of gradients."""
    config = reproduce.get_config()
    config.checkpoint = config_dict.placeholder(str)  # model folder
    config.jobs.stories260k = (
        "experiments.sweep",
        "--config=experiments/configs/stories260k_map.py",
        "--config.policy.checkpoint={checkpoint}",
    )
    return config
