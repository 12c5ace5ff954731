"""Maps S x eta for asynchronous GRPO on two-digit addition: the default of `experiments.sweep`.

    python -m experiments.sweep --workdir=results/scaling_laws

Hardware: 2 CPU cores, one worker on each; 606 s. The numbers to expect are in
docs/log/2026-11-24-scaling-default-map.md.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns 384 trainings of 600 learner steps, and two small maps on the start and the schedule.

    The learning rates end where synchronous training starts to fail. At 5.6e-3 two of four runs
    with S = 0 collapse, and runs with S >= 4 collapse after 15 steps, whatever S. That is Adam's
    first updates, and not staleness (docs/log/2026-11-23-sweep-choices.md).
    """
    config = default_config()
    config.steps = 600
    config.eval_every = 5
    # Twice the steps/s of 64, and the same two regimes (docs/log/2026-11-23-sweep-choices.md).
    config.num_prompts = 32
    config.sweep = ConfigDict(
        dict(
            max_lags=(0, 1, 2, 4, 8, 16, 32, 64),
            learning_rates=(3.5e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3),
            seeds=(0, 1, 2, 3, 4, 5),
            num_warm_starts=2,  # seed s starts from warm start s modulo this
            horizons=(100, 300, 600),  # learner steps up to which a run is looked at
            # Learner steps below a quarter of the peak pass rate, after which a cell ends.
            freeze_after=60,
            # Cells vectorized together in a worker; more than 1 pays on an accelerator alone.
            chunk_size=1,
            num_workers=0,  # processes; 0: one for each core
        )
    )
    # Further maps, each named with its differences from the above.
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
