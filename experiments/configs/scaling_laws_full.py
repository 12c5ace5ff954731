"""The S x eta map over 600 steps and for SGD, cyclic refresh, a synchronous start and three-digit sums.

    python -m experiments.sweep --config=experiments/configs/scaling_laws_full.py --workdir=results/scaling_laws_full

Hardware: 2 CPU cores, several hours.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config():
    """Eight seeds, twice the default's horizon, and every variant on the whole grid."""
    config = scaling_laws.get_config()
    config.steps = 600
    config.sweep.seeds = tuple(range(8))
    config.sweep.learning_rates = (2.5e-4, 3.5e-4, 5e-4, *config.sweep.learning_rates)
    config.variants = ConfigDict(
        dict(
            synchronous_start=dict(lag=dict(start="synchronous")),
            cyclic=dict(lag=dict(schedule="cyclic")),
            sgd=dict(optimizer=dict(name="sgd"), sweep=dict(learning_rates=(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2))),
            three_digits=dict(task=dict(num_digits=3)),
        )
    )
    return config
