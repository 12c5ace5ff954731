"""Times learner steps as one size at a time grows, for `experiments.benchmark --scaling`.

    python -m experiments.benchmark --scaling --workdir=results/scaling

Hardware: 2 CPU cores with no other load, a quarter of an hour.
Outcome: in experiments/results/benchmark_scaling.
"""

from ml_collections import ConfigDict, config_dict

from experiments.configs import benchmark


def get_config() -> ConfigDict:
    """Returns the benchmark with fewer steps, and the values of each size."""
    config = benchmark.get_config()
    config.steps = 12
    config.topology = config_dict.placeholder(str)  # the memory is that of this machine's programs
    config.scaling = ConfigDict(
        dict(
            num_prompts=(4, 8, 16, 32, 80),  # the last is ten times that of the benchmark
            group_size=(4, 8, 16, 32),
            prompt_length=(16, 32, 64, 128),
            response_length=(16, 32, 64, 128),
            d_model=(64, 128, 256, 512),
            vocab_size=(512, 1024, 2048, 4096),
            max_lag=(0, 4, 16, 64),
            devices=(1, 2, 4, 8),  # simulated devices, which share the cores
            processes=(1, 2),  # on this machine, each with a device
            seconds=300.0,  # after which a point is given up
        )
    )
    return config
