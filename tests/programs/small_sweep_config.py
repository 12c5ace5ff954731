"""A sweep of one small map: 72 cells of 60 learner steps, on two workers."""

from ml_collections import ConfigDict

from experiments.configs import scaling_laws
from tests.helpers import bigram


def get_config():
    """Returns the default sweep with an enumerable task, a bigram table and no variants."""
    config = scaling_laws.get_config()
    config.update(dict(steps=60, num_prompts=4, group_size=4, eval_every=5))
    config.warm_start.steps = 0
    bigram.put_into(config)
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
