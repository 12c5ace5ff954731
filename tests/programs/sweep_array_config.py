"""A sweep of two small maps for an array of jobs: 24 cells, and 6 with a cyclic schedule."""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config():
    """Returns the default sweep with an enumerable task, a tiny policy and 20 learner steps."""
    config = scaling_laws.get_config()
    config.update(dict(steps=20, num_prompts=4, group_size=4, eval_every=5))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    config.sweep.update(
        dict(
            max_lags=(0, 1, 4),
            learning_rates=(1e-3, 1e-2),
            horizons=(10, 20),
            seeds=(0, 1, 2, 3),
        )
    )
    config.sweep.num_workers = 1
    config.variants = ConfigDict(
        dict(cyclic=dict(lag=dict(schedule="cyclic"), sweep=dict(seeds=(0,))))
    )
    return config
