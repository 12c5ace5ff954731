"""Trains a toy policy on two-digit addition: the default config of `experiments.train`.

    python -m experiments.train --workdir=results/train [--config.lag.max_lag=16] [--config.seed=1]

Hardware: 2 CPU cores. README.md says how long it takes, and which numbers to expect.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns the default config of the package, unchanged."""
    return default_config()
