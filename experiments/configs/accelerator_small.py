"""Runs the programme for accelerators in small, on any machine: a rehearsal.

    python -m experiments.accelerator --workdir=DIR \
        --config=experiments/configs/accelerator_small.py

Hardware: 2 CPU cores, some minutes. Its numbers say nothing about an accelerator.
"""

from ml_collections import ConfigDict

from experiments.configs import accelerator


def get_config() -> ConfigDict:
    """Returns the programme with a small policy, a small map and short trainings."""
    config = accelerator.get_config()
    config.accelerator.update(
        dict(
            benchmark="experiments/configs/benchmark.py",
            benchmark_flags=("--config.steps=5",),
            map="experiments/configs/small_map.py",
            map_flags=(
                "--config.sweep.seeds=(0,)",
                "--config.steps=20",
                "--config.sweep.horizons=(10,20)",
            ),
            chunk_sizes=(4,),
            repeat_steps=12,
            repeat_flags=("--config.warm_start.steps=0",),
        )
    )
    return config
