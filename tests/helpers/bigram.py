"""The smallest policy: the next token depends on the last one alone.

Its programs compile in less than half of the time of the decoder's. Tests in which the model does
not matter take it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config

NAME = "tests.helpers.bigram:Bigram"
DECODER_SHAPE = ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")


@dataclasses.dataclass(frozen=True)
class Bigram:
    vocab_size: int
    dtype: str = "float32"

    def init(self, key):
        return {"table": jax.random.normal(key, (self.vocab_size,) * 2, self.dtype)}

    def unembed(self, params, hidden):
        return hidden  # the logits are rows of the table

    def apply(self, params, tokens):
        return params["table"][tokens]

    def prefill(self, params, tokens, mask):
        logits = params["table"][tokens[:, -1]]
        return logits, logits

    def empty_cache(self, num_prompts, group_size, length):
        return jnp.zeros((num_prompts, group_size, 1), self.dtype)

    def decode(self, params, tokens, index, cache, prefix, prefix_mask):
        return params["table"][tokens], cache

    def response_hidden(self, params, prompts, mask, tokens):
        last = jnp.broadcast_to(prompts[:, None, -1:], (*tokens.shape[:2], 1))
        return params["table"][jnp.concatenate([last, tokens[..., :-1]], axis=-1)]


def put_into(config: ConfigDict) -> None:
    """Makes a table the policy of a config, in place of the decoder that it describes."""
    for name in DECODER_SHAPE:  # a shape that is not the default's is refused
        config.policy[name] = default_config().policy[name]
    config.policy.name = NAME
