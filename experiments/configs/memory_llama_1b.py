"""Compiles a Llama-3.2-1B for its memory: sampling, and an update with 8 responses.

    python -m experiments.memory --workdir=results/memory_llama_1b --config.topology=v5p:2x2x1

Hardware: a CPU. 2 minutes, 4 GB. It compiles for one chip of the slice, for more with `mesh.fsdp`.
Outcome: experiments/results/memory_llama_1b_v5p, and beside it one folder for each setting that was
compared (blocks, none, splash).
"""

from ml_collections import config_dict

from experiments.configs import benchmark_llama_1b


def get_config():
    """Returns the benchmark's config, for devices that need not be there."""
    config = benchmark_llama_1b.get_config()
    config.topology = config_dict.placeholder(str)
    return config
