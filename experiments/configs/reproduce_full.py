"""The main job with the scaling laws: 224 trainings more.

bash launch/reproduce.sh --config=experiments/configs/reproduce_full.py --workdir=results/reproduce_full
"""

from experiments.configs import reproduce


def get_config():
    """The jobs of the default, and the S x eta map."""
    config = reproduce.get_config()
    config.jobs.scaling_laws = ("experiments.sweep",)
    return config
