"""Runs the bias law, full-size variants of the map with four seeds, and every correction.

    bash launch/reproduce.sh --preset=full

Hardware: 2 CPU cores. It takes hours. It can be run in parts, since finished jobs are skipped.
"""

from ml_collections import ConfigDict

from experiments.configs import reproduce


def get_config() -> ConfigDict:
    """Returns the default jobs with the full sweep, and the corrections as a third job."""
    config = reproduce.get_config()
    sweep = "--config=experiments/configs/scaling_laws_full.py"
    corrections = "--config=experiments/configs/corrections_full.py"
    config.jobs.scaling_laws = ("experiments.sweep", sweep)
    config.jobs.corrections = ("experiments.corrections", corrections)
    return config
