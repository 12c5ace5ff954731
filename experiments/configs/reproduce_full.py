"""The main job at length: every map of the scaling laws over 600 steps, and every correction.

    bash launch/reproduce.sh --preset=full

Hardware: 2 CPU cores, about an hour and a quarter.
"""

from experiments.configs import reproduce


def get_config():
    """The jobs of the default, with the long sweep in place of the short one, and the corrections."""
    config = reproduce.get_config()
    config.jobs.scaling_laws = ("experiments.sweep", "--config=experiments/configs/scaling_laws_full.py")
    config.jobs.corrections = ("experiments.corrections", "--config=experiments/configs/corrections_full.py")
    return config
