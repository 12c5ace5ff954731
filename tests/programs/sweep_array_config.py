"""A sweep of two small maps for an array of jobs: 24 cells, and 6 with a cyclic schedule."""

from ml_collections import ConfigDict

from tests.programs import small_sweep_config


def get_config():
    """Returns the small sweep with 20 learner steps, fewer cells, one worker and a variant."""
    config = small_sweep_config.get_config()
    config.steps = 20
    config.sweep.update(
        dict(
            max_lags=(0, 1, 4),
            learning_rates=(1e-3, 1e-2),
            horizons=(10, 20),
            num_workers=1,
        )
    )
    config.variants = ConfigDict(
        dict(cyclic=dict(lag=dict(schedule="cyclic"), sweep=dict(seeds=(0,))))
    )
    return config
