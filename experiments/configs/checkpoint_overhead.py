"""The default training with 64 versions in flight: what a checkpoint costs the loop.

    python -m experiments.checkpoint_overhead --workdir=results/checkpoint_overhead

Hardware: 2 CPU cores. What was measured is in README.md.
"""

from staleness_grpo import config as config_lib


def get_config():
    """The default configuration with lag 64, without evaluations, saved at the default interval."""
    config = config_lib.default()
    config.update(dict(steps=1100, eval_every=0))
    config.lag.max_lag = 64
    return config
