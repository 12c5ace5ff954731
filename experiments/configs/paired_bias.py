"""Gradient bias of stale rollouts on two-digit addition, against fresh ones with common random numbers.

    python -m experiments.paired_bias --workdir=results/paired_bias

Hardware: 2 CPU cores, 2 to 4 minutes. The numbers to expect are in
docs/log/2026-11-24-paired-bias.md.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Trainings of 80 learner steps at seven lags and two learning rates, compared at every step."""
    config = default_config()
    config.steps = 80
    config.eval_every = 5
    config.metrics.paired_every = 1
    config.metrics.paired_blocks = (
        16  # of 4 groups: intervals as from 64, a sixteenth of the records
    )
    config.paired = ConfigDict(dict(max_lags=(0, 1, 2, 4, 8, 16, 32), learning_rates=(1e-4, 4e-4)))
    return config
