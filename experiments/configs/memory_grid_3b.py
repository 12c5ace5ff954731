"""Compiles the paper's grid with Llama-3.2-3B for the memory of each of its 16 devices.

    python -m experiments.memory --config=experiments/configs/memory_grid_3b.py --workdir=DIR \
        --config.topology=v5p:2x2x4

Hardware: a CPU.
Outcome: experiments/results/memory_grid_3b_v5p, and memory_grid_3b_v5p_splash beside it.
"""

from experiments.common import llama_shapes
from experiments.configs import gsm8k_llama32_3b, memory_grid_1b


def get_config():
    """Returns the grid's config with the checkpoint's shape in place of the checkpoint."""
    return memory_grid_1b.of_shape(gsm8k_llama32_3b.get_config(), llama_shapes.LLAMA_32_3B)
