"""Compiles the paper's grid with Llama-3.2-1B for the memory of each of its 8 devices.

    python -m experiments.memory --config=experiments/configs/memory_grid_1b.py --workdir=DIR \
        --config.topology=v5p:2x2x2

Hardware: a CPU.
Outcome: not known. On two busy cores compiling took more than 18 minutes and 17 GB, and was not
waited for. With --config.policy.attention=splash it took more than 8 minutes.
"""

from ml_collections import ConfigDict, config_dict

from experiments.common import llama_shapes
from experiments.configs import gsm8k_llama32_1b
from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns the grid's config with the checkpoint's shape in place of the checkpoint."""
    return of_shape(gsm8k_llama32_1b.get_config(), llama_shapes.LLAMA_32_1B)


def of_shape(config, shape):
    """Returns a grid's config with random weights of this shape, and prompts of up to 320 tokens.

    Its devices need not be there.
    """
    config.task = default_config().task
    config.policy.update(shape)
    config.benchmark = ConfigDict(
        dict(vocab_size=128_256, prompt_length=320, max_response_length=1024)
    )
    config.topology = config_dict.placeholder(str)
    return config
