"""Does a Llama-3.2-1B fit? The memory of sampling and of an update with 8 responses of 1,024 tokens.

    python -m experiments.memory --workdir=results/memory_llama_1b --config.topology=v5p:2x2x1

Hardware: a CPU; one chip of the slice is compiled for, more with `mesh.fsdp`. 2 minutes, 4 GB. Outcome: README.
"""

from ml_collections import config_dict

from experiments.configs import benchmark_llama_1b


def get_config():
    """The benchmark's config, for devices that need not be there."""
    config = benchmark_llama_1b.get_config()
    config.topology = config_dict.placeholder(str)
    return config
