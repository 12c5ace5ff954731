"""Reports the memory that gsm8k_llama32_3b.py needs on each of its 16 devices.

    python -m experiments.memory --config=experiments/configs/memory_grid_3b.py --workdir=DIR \
        --config.topology=v5p:2x2x4

Hardware: a CPU.
Outcome: in experiments/results/memory_grid_3b_v5p. With splash attention, the outcome is in
experiments/results/memory_grid_3b_v5p_splash.
"""

from ml_collections import ConfigDict

from experiments.common import llama_shapes
from experiments.configs import gsm8k_llama32_3b, memory_grid_1b


def get_config() -> ConfigDict:
    """Returns the config of gsm8k_llama32_3b.py, with random weights and random tokens."""
    return memory_grid_1b.without_checkpoint(
        gsm8k_llama32_3b.get_config(), llama_shapes.LLAMA_32_3B
    )
