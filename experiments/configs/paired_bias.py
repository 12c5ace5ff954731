"""Compares stale gradients with fresh ones on two-digit addition, under the same noise.

It is the default config of `experiments.paired_bias`.

    python -m experiments.paired_bias --workdir=results/paired_bias

Hardware: 2 CPU cores, a few minutes. The numbers to expect are in
experiments/results/paired_bias/summary.json.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns trainings of 80 learner steps, at seven lags and two learning rates.

    Gradients are compared at every step.
    """
    config = default_config()
    config.steps = 80
    config.eval_every = 5
    config.metrics.paired_every = 1
    # With 16 blocks of 4 groups, the intervals are as with 64 single groups. The records are a
    # sixteenth of the size.
    config.metrics.paired_blocks = 16
    config.paired = ConfigDict(dict(max_lags=(0, 1, 2, 4, 8, 16, 32), learning_rates=(1e-4, 4e-4)))
    return config
