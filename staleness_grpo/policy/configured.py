"""The policy that a config asks for, and the parameters that it starts from."""

from collections.abc import Mapping

from jax.sharding import Mesh

from staleness_grpo.policy.supervised import warm_start
from staleness_grpo.policy.transformer import Policy, TransformerConfig
from staleness_grpo.types import PyTree

# A run's choice; the rest is the checkpoint's.
RUN_FIELDS = ("dtype", "param_dtype", "attention", "remat", "vocab_chunks")


def make_policy(fields: Mapping, vocab_size: int) -> Policy:
    """The policy of `config.policy`: of the shape given there for `vocab_size` tokens, or its checkpoint's.

    Raises:
      ValueError: for a shape that the decoder cannot have, or a checkpoint that cannot be loaded.
    """
    fields = dict(fields)
    checkpoint = fields.pop("checkpoint")
    if checkpoint is None:
        return Policy(TransformerConfig(vocab_size=vocab_size, **fields))
    from staleness_grpo.policy import huggingface_config

    return Policy(huggingface_config.read_config(checkpoint, **{name: fields[name] for name in RUN_FIELDS}))


def starting_params(policy: Policy, task, config, mesh: Mesh) -> PyTree | None:
    """The checkpoint's parameters, sharded; without one the warm start's; without either None, for random ones."""
    if config.policy.checkpoint is not None:
        from staleness_grpo.policy import huggingface

        return huggingface.load_params(config.policy.checkpoint, policy, mesh)
    return warm_start(policy, task, config) if config.warm_start.steps else None
