"""Measures what a checkpoint costs the loop, with 64 versions in flight.

    python -m experiments.checkpoint_overhead --workdir=results/checkpoint_overhead

Hardware: 2 CPU cores.
"""

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns the default config with lag 64 and without evaluations."""
    config = default_config()
    config.update(dict(steps=1100, eval_every=0))
    config.lag.max_lag = 64
    return config
