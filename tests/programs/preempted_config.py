"""A training that is long enough to be preempted in its middle: 400 steps with lag 3."""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config


def get_config():
    """Returns the default training with an enumerable task and a tiny policy, saved on request."""
    config = default_config()
    config.update(dict(steps=400, num_prompts=4, group_size=4, eval_every=50))
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.lag.max_lag = 3
    config.checkpoint.save_every = 1000
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    return config
