"""Times an asynchronous training against the synchronous loop, on the same devices.

    python -m experiments.async_speed --workdir=results/async_speed

Hardware: 2 CPU cores with no other load.
"""

from ml_collections import ConfigDict

from experiments.configs import async_train


def get_config() -> ConfigDict:
    """Returns 100 learner steps of the asynchronous training, without evaluations or saves."""
    config = async_train.get_config()
    config.update(dict(steps=100, eval_every=0))
    config.sampler.batch_prompts = config.num_prompts
    config.warm_start.steps = 0
    config.speed = ConfigDict(dict(repeats=3))  # trainings of each kind, of which the median counts
    return config
