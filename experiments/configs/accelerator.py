"""Asks an accelerator all that is to be known of it, within ten minutes.

    python -m experiments.accelerator --workdir=results/accelerator

Hardware: one GPU or TPU with 80 GB.
Outcome: not known. No accelerator was available. accelerator_small.py has been run on a CPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the programme for a chip of a data center."""
    return ConfigDict(
        dict(
            accelerator=dict(
                parts=("gradients", "benchmark", "map", "repeat"),
                seconds=150.0,  # after which a process is ended, and its part has failed
                benchmark="experiments/configs/benchmark_llama_1b.py",
                benchmark_flags=(),  # further flags of experiments.benchmark
                map="experiments/configs/accelerator_map.py",
                map_flags=(),  # further flags of experiments.sweep
                chunk_sizes=(16, 64),  # cells in one program
                repeat_steps=100,  # learner steps of each of the two trainings
                repeat_flags=("--config.warm_start.steps=200",),  # of experiments.train
            )
        )
    )
