"""Reports the memory of a Llama-3.2-1B for sampling, and for an update with 8 responses.

    python -m experiments.memory --workdir=results/memory_llama_1b --config.topology=v5p:2x2x1

Hardware: a CPU, some minutes. The programs are compiled for one chip of the slice.
`mesh.fsdp` makes them use more chips.
Outcome: in experiments/results/memory_llama_1b_v5p. Beside it, memory_llama_1b_v5p_blocks and
memory_llama_1b_v5p_none are the outcomes with these values of `policy.remat`. For
memory_llama_1b_v5p_splash, `policy.remat` was none and `policy.attention` splash.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import benchmark_llama_1b


def get_config() -> ConfigDict:
    """Returns the benchmark's config, with a `topology` to compile for absent devices."""
    config = benchmark_llama_1b.get_config()
    config.topology = config_dict.placeholder(str)
    return config
