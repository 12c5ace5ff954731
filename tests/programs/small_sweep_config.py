"""A sweep of one small map: 72 cells of 60 learner steps, on two workers."""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws


def get_config():
    """Returns the default sweep with an enumerable task, a tiny policy and no variants."""
    config = scaling_laws.get_config()
    config.update(dict(steps=60, num_prompts=4, group_size=4, eval_every=5))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    config.sweep.update(
        dict(
            max_lags=(0, 1, 2, 4, 8, 16),
            learning_rates=(1e-3, 1e-2, 1e-1),
            seeds=(0, 1, 2, 3),
            num_workers=2,
        )
    )
    config.variants = ConfigDict()
    return config
