"""Makes the policy that a config describes, and checks the config's policy section."""

from collections.abc import Mapping
from typing import Any

import jax

from staleness_grpo.errors import FieldError, require, require_choice
from staleness_grpo.policy import own
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.numerics import PARAM_DTYPES
from staleness_grpo.policy.transformer import Policy

# With a checkpoint, a run chooses only these fields. The checkpoint decides all other fields.
RUN_FIELDS = ("dtype", "param_dtype", "attention", "remat", "vocab_chunks")

# float16 is not offered: the gradient of one token is about 1 / (tokens of the batch), which is
# below the smallest normal float16 number.
DTYPES = ("bfloat16", "float32", "float64")


def make_policy(fields: Mapping[str, Any], vocab_size: int) -> AnyPolicy:
    """Returns the policy that `config.policy` describes: the decoder, or one's own with a name.

    Raises:
      FieldError: the decoder does not support the architecture, or the class its arguments.
      ModelFolderError: the checkpoint's config.json cannot be used.
    """
    if fields.get("name") is not None:
        return own.make(fields["name"], fields["arguments"], vocab_size)
    return make_decoder(fields, vocab_size)


def make_decoder(fields: Mapping[str, Any], vocab_size: int) -> Policy:
    """Returns the decoder that `config.policy` describes.

    With a checkpoint, the checkpoint's config.json decides the architecture. Without a checkpoint,
    the fields and `vocab_size` decide it.

    Raises:
      FieldError: the decoder does not support the architecture.
      ModelFolderError: the checkpoint's config.json cannot be used.
    """
    fields = dict(fields)
    for name in ("name", "arguments"):
        fields.pop(name, None)
    checkpoint = fields.pop("checkpoint")
    if checkpoint is None:
        return Policy(TransformerConfig(vocab_size=vocab_size, **fields))
    from staleness_grpo.policy.huggingface.config import read_config

    return Policy(read_config(checkpoint, **{name: fields[name] for name in RUN_FIELDS}))


def as_decoder(policy: AnyPolicy, field: str = "policy.name") -> Policy:
    """Returns the policy, if it is the decoder.

    Raises:
      FieldError: it is a class of one's own, for which there are no model folders.
    """
    hint = "this needs the decoder: leave policy.name unset"
    if not isinstance(policy, Policy):
        raise FieldError(field, hint, type(policy).__name__)
    return policy


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if training does not support a value in `config.policy`."""
    require_choice(fields, "dtype", DTYPES)
    require_choice(fields, "param_dtype", PARAM_DTYPES)
    for name in ("dtype", "param_dtype"):
        hint = "set JAX_ENABLE_X64=1 in the environment, or give float32"
        # JAX adds this attribute at run time.
        x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        require(fields[name] != "float64" or x64, name, hint, fields[name])
    # The task decides the size of the vocabulary, which is not known here. Any size that
    # `vocab_chunks` divides serves for checking the other fields.
    make_decoder({**fields, "checkpoint": None}, max(fields["vocab_chunks"], 1))
