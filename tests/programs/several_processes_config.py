"""A training whose batch and heads divide over 8 devices, with uniform lags up to 3."""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns the default training with an enumerable task and a tiny policy; keeps checkpoints."""
    config = default_config()
    config.update(dict(steps=12, num_prompts=8, group_size=4, eval_every=4))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=4, num_kv_heads=4, head_dim=4, d_ff=16)
    )
    config.lag.update(dict(max_lag=3, schedule="uniform"))
    config.checkpoint.update(dict(save_every=4, keep=99))
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    return config
