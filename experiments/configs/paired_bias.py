"""Compares stale gradients on two-digit addition with fresh ones that have the same noise.

    python -m experiments.paired_bias --workdir=results/paired_bias

Hardware: 2 CPU cores, 147 s. The numbers to expect are in docs/log/2026-11-24-paired-bias.md.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns 80 learner steps at seven lags and two learning rates, compared at every step."""
    config = default_config()
    config.steps = 80
    config.eval_every = 5
    config.metrics.paired_every = 1
    # Blocks of 4 groups. The intervals are as from 64 single ones, with a sixteenth of the records.
    config.metrics.paired_blocks = 16
    config.paired = ConfigDict(dict(max_lags=(0, 1, 2, 4, 8, 16, 32), learning_rates=(1e-4, 4e-4)))
    return config
