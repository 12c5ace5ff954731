"""Measures what the guard prevents, costs and foretells: the default of `experiments.guard`.

    python -m experiments.guard --workdir=results/guard

The level of the alarm was chosen on other seeds: those of `law`.

Hardware: 2 CPU cores, 20 minutes beside other work. The numbers to expect are in
experiments/results/guard/summary.json.
"""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config() -> ConfigDict:
    """Returns a map without a guard, and the same cells with each mode of the guard."""
    config = scaling_laws.get_config()
    config.update(dict(steps=400, num_prompts=16))
    config.sweep.update(
        dict(
            max_lags=(0, 4, 16),
            learning_rates=(6.3e-4, 1.6e-3, 2.5e-3),
            seeds=(30, 31, 32, 33, 34),
            horizons=(400,),
        )
    )
    config.variants = ConfigDict(
        dict(warn=dict(guard=dict(mode="warn")), scale=dict(guard=dict(mode="scale")))
    )
    return config
