"""Measures how much time a checkpoint costs a training with 64 policy versions in flight.

    python -m experiments.checkpoint_overhead --workdir=results/checkpoint_overhead

Hardware: 2 CPU cores.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns the default config with lag 64 and without evaluations."""
    config = default_config()
    config.update(dict(steps=1100, eval_every=0))
    config.lag.max_lag = 64
    return config
