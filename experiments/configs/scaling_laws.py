"""Trains a grid of S x eta on two-digit addition: the default config of `experiments.sweep`.

    python -m experiments.sweep --workdir=results/scaling_laws

Hardware: 2 CPU cores, with one worker on each, 10 to 20 minutes. The numbers to expect are in
experiments/results/scaling_laws/summary.json.
"""

from ml_collections import ConfigDict, config_dict

from staleness_grpo.config.defaults import default_config


def get_config() -> ConfigDict:
    """Returns a map of 384 trainings of 600 learner steps, and two small variants of it.

    The variants change the start and the schedule of the lag.

    The highest learning rate is just below those at which synchronous training fails. At 5.6e-3,
    two of four runs with S = 0 collapse. Runs with S >= 4 collapse after 15 steps there, whatever S
    is. The cause is Adam's first updates, and not staleness
    (docs/log/2026-11-23-sweep-choices.md).
    """
    config = default_config()
    config.steps = 600
    config.eval_every = 5
    # With 32 prompts the steps/s are twice as many as with 64, and the two regimes are the same
    # (docs/log/2026-11-23-sweep-choices.md).
    config.num_prompts = 32
    config.sweep = ConfigDict(
        dict(
            max_lags=(0, 1, 2, 4, 8, 16, 32, 64),
            learning_rates=(3.5e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3),
            seeds=(0, 1, 2, 3, 4, 5),
            num_warm_starts=2,  # seed s starts from warm start s modulo this number
            horizons=(100, 300, 600),  # a collapse is looked for up to each of these learner steps
            # A cell ends after so many learner steps below a quarter of its peak pass rate.
            freeze_after=60,
            # compiled, or loop (each cell is a training in its own workdir); unset: compiled, where
            # the cells can be compiled.
            engine=config_dict.placeholder(str),
            # Cells that a worker trains together, vectorized. More than 1 is faster only on an
            # accelerator.
            chunk_size=1,
            num_workers=0,  # processes on CPUs; 0: one for each core
        )
    )
    # Further maps: the name of each, and its differences from the settings above.
    config.variants = ConfigDict(
        dict(
            synchronous_start=dict(
                lag=dict(start="synchronous"),
                sweep=dict(max_lags=(16, 32, 64), learning_rates=(1.4e-3, 2.8e-3), seeds=(0, 1)),
            ),
            cyclic=dict(
                lag=dict(schedule="cyclic"),
                sweep=dict(max_lags=(4, 16, 64), learning_rates=(1e-3, 2e-3, 4e-3), seeds=(0, 1)),
            ),
        )
    )
    return config
