"""Trains the cells of one seed of the default map, for `experiments.accelerator`.

    python -m experiments.sweep --config=experiments/configs/accelerator_map.py --workdir=DIR

Hardware: one GPU or TPU. The default map has six times as many cells.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns the default map with one seed and without variants."""
    config = scaling_laws.get_config()
    config.sweep.seeds = (0,)
    config.variants = ConfigDict()
    return config
