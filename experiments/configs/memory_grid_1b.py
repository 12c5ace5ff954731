"""Does the paper's grid with Llama-3.2-1B fit? The memory of gsm8k_llama32_1b.py on each of its 8 devices.

    python -m experiments.memory --config=experiments/configs/memory_grid_1b.py --workdir=DIR \
        --config.topology=v5p:2x2x2

Hardware: a CPU. Outcome: not known; on two busy cores compiling took more than 18 minutes and 17 GB, with
--config.policy.attention=splash more than 8 minutes, and was not waited for.
"""

from ml_collections import ConfigDict, config_dict

from experiments import llama_shapes
from experiments.configs import gsm8k_llama32_1b
from staleness_grpo import config as config_lib


def get_config():
    """The grid's config with the checkpoint's shape in place of the checkpoint."""
    return of_shape(gsm8k_llama32_1b.get_config(), llama_shapes.LLAMA_32_1B)


def of_shape(config, shape):
    """A grid's config for devices that need not be there: random weights of this shape, prompts of up to 320 tokens."""
    config.task = config_lib.default().task
    config.policy.update(shape)
    config.benchmark = ConfigDict(dict(vocab_size=128_256, prompt_length=320, max_response_length=1024))
    config.topology = config_dict.placeholder(str)
    return config
