"""The smallest training that learns something, as a config."""

from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from tests.helpers import bigram


def decoder_config(**overrides: Any) -> ConfigDict:
    """Returns the config of six steps of a tiny decoder, with `overrides` by their dotted names."""
    config = default_config()
    config.steps = 6
    config.num_prompts = 4
    config.group_size = 4
    config.eval_every = 0
    config.warm_start.steps = 0
    config.policy.update(
        dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16)
    )
    config.optimizer.learning_rate = 0.02
    # On this task an untrained policy gets some reward. An exact match on sums would give it none.
    config.task = ConfigDict(
        dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8)
    )
    config.update_from_flattened_dict(overrides)
    return config


def tiny_config(**overrides: Any) -> ConfigDict:
    """Returns `decoder_config` with the smallest policy, whose programs compile sooner."""
    config = decoder_config()
    bigram.put_into(config)
    config.update_from_flattened_dict(overrides)
    return config


def asynchronous_config(**overrides: Any) -> ConfigDict:
    """Returns `tiny_config` with lags up to 3 and the section of an asynchronous run."""
    config = tiny_config(**{"lag.max_lag": 3, "sampler.batch_prompts": 2})
    fields = dict(admission="bounded", generator_devices=0, in_flight="finish", look_every=1)
    config.asynchronous = ConfigDict(fields)
    config.update_from_flattened_dict(overrides)
    return config
