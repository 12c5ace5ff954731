"""Turns a config.json of the Llama and Qwen family into a TransformerConfig, and back."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from staleness_grpo.errors import FieldError
from staleness_grpo.policy.architecture import RopeScaling, TransformerConfig


class ModelFolderError(ValueError):
    """A model folder cannot be used.

    The message names the file, the field or tensor, and what to do.
    """


@dataclasses.dataclass(frozen=True)
class Family:
    """Holds what the name of an architecture decides, and its config.json does not say."""

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    # Used if config.json has no `head_dim`. None means hidden_size / num_attention_heads.
    head_dim: int | None = None


FAMILIES = {
    "LlamaForCausalLM": Family("llama"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, head_dim=128),
}

# Fields that change the computation, with the one value that this decoder computes. Absent fields
# are taken to have that value.
REQUIRED = {
    "attention_bias": False,  # would put a bias on the output projection too
    "hidden_act": "silu",
    "is_causal": True,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "use_sliding_window": False,
}


class Kind(NamedTuple):
    """Says what a field may hold, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def or_null(kind: Kind) -> Kind:
    """Returns the kind of a field that may also be null, which means the same as absent."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.accepts(value))


COUNT = Kind("a whole number above 0", lambda value: type(value) is int and value > 0)
POSITIVE = Kind(
    "a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf
)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
NAMES = Kind(
    "a list of names",
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
)
RECORD = Kind("an object of fields", lambda value: isinstance(value, dict))
FILES = Kind(
    "the file of each tensor",
    lambda value: isinstance(value, dict) and NAMES.accepts([*value.values()]),
)
TOKEN = Kind("a token's number", lambda value: type(value) is int)
TOKENS = Kind(
    "a token's number, or a list of them",
    lambda value: (
        TOKEN.accepts(value) or isinstance(value, list) and all(map(TOKEN.accepts, value))
    ),
)
# The fields whose values are used, in any JSON file of a model folder and in the records of rotary
# positions within config.json.
FIELDS = {
    "architectures": or_null(NAMES),
    "bos_token_id": or_null(TOKEN),
    "eos_token_id": or_null(TOKENS),
    "factor": POSITIVE,
    "head_dim": or_null(COUNT),
    "hidden_size": COUNT,
    "high_freq_factor": POSITIVE,
    "intermediate_size": COUNT,
    "layer_types": or_null(NAMES),
    "low_freq_factor": POSITIVE,
    "max_position_embeddings": or_null(COUNT),
    "num_attention_heads": COUNT,
    "num_hidden_layers": COUNT,
    "num_key_value_heads": or_null(COUNT),
    "original_max_position_embeddings": COUNT,
    "pad_token_id": or_null(TOKEN),
    "rms_norm_eps": POSITIVE,
    "rope_parameters": or_null(RECORD),
    "rope_scaling": or_null(RECORD),
    "rope_theta": POSITIVE,
    "tie_word_embeddings": SWITCH,
    "vocab_size": COUNT,
    "weight_map": FILES,
}


def read_json(path: pathlib.Path) -> dict:
    """Reads the fields in a JSON file of a model folder.

    Raises:
      ModelFolderError: the file cannot be read, or one of FIELDS holds another kind of value.
    """
    hint = "put the checkpoint's own file there"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFolderError(f"{path} cannot be read ({reason}): {hint}") from error
    if not isinstance(fields, dict):
        raise ModelFolderError(
            f"{path} holds {json.dumps(fields):.60}, not an object of fields: {hint}"
        )
    for record in (fields, fields.get("rope_parameters"), fields.get("rope_scaling")):
        for name, value in record.items() if isinstance(record, dict) else ():
            if name in FIELDS and not FIELDS[name].accepts(value):
                raise ModelFolderError(
                    f"{path}: {name}={json.dumps(value):.60}: give {FIELDS[name].words}"
                )
    return fields


def read_config(folder: str | pathlib.Path, **choices: Any) -> TransformerConfig:
    """Returns the architecture that `folder`/config.json describes.

    Args:
      folder: the model folder.
      choices: the fields of TransformerConfig that config.json does not decide, such as dtype.

    Raises:
      ModelFolderError: an architecture, or a value of a field, that this decoder does not compute.
    """
    if not os.path.isdir(folder):  # pathlib would take "" for the current folder
        hint = (
            "download a model of the Hub first (hf download NAME --local-dir FOLDER) "
            "and give its folder"
        )
        raise ModelFolderError(f"there is no folder {str(folder)!r}: {hint}")
    path = pathlib.Path(folder) / "config.json"
    fields = read_json(path)
    try:
        name = next(iter(fields.get("architectures") or []), None)
        if name not in FAMILIES:
            raise ModelFolderError(
                f"the architecture {name} is not supported: give one of {', '.join(FAMILIES)}"
            )
        family = FAMILIES[name]
        for field, value in REQUIRED.items():
            if fields.get(field, value) != value:
                hint = f"only {value}: give another checkpoint"
                raise ModelFolderError(f"{field}={fields[field]} is not supported, {hint}")
        if any(kind != "full_attention" for kind in fields.get("layer_types") or []):
            kinds = ", ".join(sorted(set(fields["layer_types"])))
            hint = "only full_attention: give another checkpoint"
            raise ModelFolderError(f"layer_types={kinds} is not supported, {hint}")
        heads = fields["num_attention_heads"]
        kv_heads = fields.get("num_key_value_heads")
        theta, scaling = read_rope(fields)
        return TransformerConfig(
            vocab_size=fields["vocab_size"],
            num_layers=fields["num_hidden_layers"],
            d_model=fields["hidden_size"],
            num_heads=heads,
            num_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=fields.get("head_dim") or family.head_dim or fields["hidden_size"] // heads,
            d_ff=fields["intermediate_size"],
            rope_theta=theta,
            rope_scaling=scaling,
            norm_epsilon=fields.get("rms_norm_eps", 1e-6),
            tie_embeddings=fields.get("tie_word_embeddings", False),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            **choices,
        )
    except KeyError as error:
        raise ModelFolderError(f"{path}: the field {error} is missing: add it") from error
    except ModelFolderError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    except FieldError as error:  # a shape that the decoder cannot have
        raise ModelFolderError(f"{path}: {error}, or another checkpoint") from error


def max_positions(folder: str | pathlib.Path) -> int | None:
    """Returns the longest sequence that the checkpoint is made for; None if config.json has none.

    Raises:
      ModelFolderError: config.json cannot be used.
    """
    return read_json(pathlib.Path(folder) / "config.json").get("max_position_embeddings")


def read_rope(fields: dict) -> tuple[float, RopeScaling | None]:
    """Returns theta and the scaling of the rotary positions.

    They stand in `rope_parameters`, or in the older `rope_theta` and `rope_scaling`.

    Raises:
      KeyError: a field of the scaling is missing.
      ModelFolderError: the two spellings contradict each other, or a kind that is not supported.
    """
    spellings = [fields[name] for name in ("rope_parameters", "rope_scaling") if fields.get(name)]
    old_and_new = [
        {name: value for name, value in rope.items() if name != "rope_theta"} for rope in spellings
    ]
    if len(spellings) == 2 and old_and_new[0] != old_and_new[1]:
        raise ModelFolderError(
            "rope_parameters and rope_scaling contradict each other: leave one of them out"
        )
    rope = spellings[0] if spellings else {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        value = rope["partial_rotary_factor"]
        raise ModelFolderError(
            f"partial_rotary_factor={value} is not supported, only 1.0: give another checkpoint"
        )
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelFolderError(
            f"rope_type={kind} is not supported: give a checkpoint with default or llama3"
        )
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position=rope["original_max_position_embeddings"],
    )


def write_config(config: TransformerConfig, base: dict) -> dict:
    """Returns the fields of a config.json for this architecture.

    Fields of `base` that the architecture does not decide are kept.

    Raises:
      ModelFolderError: the policy has both biases and norms, as no supported architecture has.
    """
    families = {(family.qkv_bias, family.qk_norm): name for name, family in FAMILIES.items()}
    name = families.get((config.qkv_bias, config.qk_norm))
    if name is None:
        hint = "give False for one of them"
        raise ModelFolderError(f"no known architecture has both qkv_bias and qk_norm: {hint}")
    fields = {
        "architectures": [name],
        "model_type": FAMILIES[name].model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        # The older spelling, which every version of transformers reads.
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": config.param_dtype,
        "torch_dtype": config.param_dtype,
    }
    if config.rope_scaling is not None:
        fields["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    kept = {
        field: value for field, value in base.items() if field not in ("rope_parameters", *fields)
    }
    return {**fields, **kept}
