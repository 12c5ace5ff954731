"""A training that is long enough to be preempted in its middle: 400 steps with lag 3."""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from tests.helpers import bigram


def get_config():
    """Returns the default training with an enumerable task and a bigram table, saved on request."""
    config = default_config()
    config.update(dict(steps=400, num_prompts=4, group_size=4, eval_every=50))
    config.warm_start.steps = 0
    bigram.put_into(config)
    config.lag.max_lag = 3
    config.checkpoint.save_every = 1000
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    return config
