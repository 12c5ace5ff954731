"""Makes the policy that a config asks for."""

from collections.abc import Mapping
from typing import Any

import jax

from staleness_grpo.errors import require, require_choice
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.transformer import Policy

# The fields that a run chooses. With a checkpoint, all others are the checkpoint's.
RUN_FIELDS = ("dtype", "param_dtype", "attention", "remat", "vocab_chunks")

# There is no float16. The gradient of one token, about 1 / (tokens of the batch), is below its
# smallest normal number. There are no bfloat16 parameters. With their 8 bits they would not move:
# an Adam step of 1e-6 rounds to nothing, and so does a moment's decay by 0.999.
DTYPES = ("bfloat16", "float32", "float64")
PARAM_DTYPES = ("float32", "float64")


def make_policy(fields: Mapping[str, Any], vocab_size: int) -> Policy:
    """Returns the policy that `config.policy` asks for.

    Its shape is that of the checkpoint, or without one that of the fields and `vocab_size`.

    Raises:
      FieldError: the decoder cannot have the shape.
      ModelFolderError: the checkpoint cannot be loaded.
    """
    fields = dict(fields)
    checkpoint = fields.pop("checkpoint")
    if checkpoint is None:
        return Policy(TransformerConfig(vocab_size=vocab_size, **fields))
    from staleness_grpo.policy.huggingface.config import read_config

    return Policy(read_config(checkpoint, **{name: fields[name] for name in RUN_FIELDS}))


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuses values of `config.policy` that a training cannot use. Raises FieldError."""
    require_choice(fields, "dtype", DTYPES)
    require_choice(fields, "param_dtype", PARAM_DTYPES)
    for name in ("dtype", "param_dtype"):
        hint = "set JAX_ENABLE_X64=1 in the environment, or give float32"
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # made when JAX starts
        require(fields[name] != "float64" or x64, name, hint, fields[name])
    # The task decides the vocabulary. Here it is any number that `vocab_chunks` divides.
    make_policy({**fields, "checkpoint": None}, max(fields["vocab_chunks"], 1))
