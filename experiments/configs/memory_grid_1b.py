"""Reports the memory that gsm8k_llama32_1b.py needs on each of its 8 devices.

    python -m experiments.memory --config=experiments/configs/memory_grid_1b.py --workdir=DIR \
        --config.topology=v5p:2x2x2

Hardware: a CPU.
Outcome: not known. Compiling was stopped before its end, on two busy cores: see
docs/log/2026-11-25-attention-at-1024-tokens.md.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.common import llama_shapes
from experiments.configs import gsm8k_llama32_1b
from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns the config of the trainings, without their checkpoint."""
    return without_checkpoint(gsm8k_llama32_1b.get_config(), llama_shapes.LLAMA_32_1B)


def without_checkpoint(config: ConfigDict, shape: Mapping[str, Any]) -> ConfigDict:
    """Replaces the checkpoint by random weights of the same shape, and the task by random tokens.

    Prompts have up to 320 tokens. This machine does not need to have the devices.

    Args:
      config: the config of trainings with a checkpoint. It is changed.
      shape: the fields of `policy` that describe the checkpoint's shape.

    Returns:
      The config.
    """
    config.task = default_config().task
    config.policy.update(shape)
    config.benchmark = ConfigDict(
        dict(vocab_size=128_256, prompt_length=320, max_response_length=1024)
    )
    config.topology = config_dict.placeholder(str)
    return config
