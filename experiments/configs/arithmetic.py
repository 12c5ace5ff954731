"""Trains a toy policy on two-digit addition: the default of `experiments.train`.

    python -m experiments.train --workdir=results/train [--config.lag.max_lag=16] [--config.seed=1]

Hardware: 2 CPU cores. The numbers to expect, and how long it takes, are in README.md.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns the default of the whole project, as it is."""
    return default_config()
