"""Trains the grid of `scaling_laws` with four seeds, and five full-size variants of it.

The variants change the lag schedule, the optimizer, the start of the lag, or the task.

    python -m experiments.sweep --config=experiments/configs/scaling_laws_full.py \
        --workdir=results/scaling_laws_full

Hardware: 2 CPU cores, about an hour. No record of it is kept; an earlier run is described in
docs/log/2026-11-24-scaling-maps-over-600-steps.md.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns the default config with four seeds, and five variants.

    A variant uses the lags and learning rates of the main map, unless it sets its own.
    """
    config = scaling_laws.get_config()
    config.sweep.seeds = (0, 1, 2, 3)
    config.variants = dict(
        cyclic=dict(lag=dict(schedule="cyclic")),
        sgd=dict(
            optimizer=dict(name="sgd"),
            sweep=dict(learning_rates=(0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048)),
        ),
        synchronous_start=dict(lag=dict(start="synchronous"), sweep=dict(max_lags=(16, 32, 64))),
        sgd_cyclic=dict(
            lag=dict(schedule="cyclic"),
            optimizer=dict(name="sgd"),
            sweep=dict(learning_rates=(0.0032, 0.0064, 0.0128, 0.0256, 0.0512, 0.1024, 0.2048)),
        ),
        three_terms=dict(task=dict(num_terms=3, num_digits=1)),
    )
    return config
