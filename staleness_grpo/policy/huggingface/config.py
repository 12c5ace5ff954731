"""Converts the config.json of a Llama or Qwen model to a TransformerConfig, and back."""

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

    The message names the file and the field or tensor, and says how to fix the problem.
    """


@dataclasses.dataclass(frozen=True)
class Family:
    """Holds settings that follow from an architecture's name and are not in its config.json."""

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

# Fields that change the computation, with the only value that this decoder supports. An absent
# field is taken to have this value.
ONLY_SUPPORTED_VALUES = {
    "attention_bias": False,  # True would add a bias to the output projection too
    "hidden_act": "silu",
    "is_causal": True,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "use_sliding_window": False,
}


class FieldType(NamedTuple):
    """Describes the values that a field may have, in words and as a function."""

    description: str
    is_valid: Callable[[Any], bool]


def or_null(field_type: FieldType) -> FieldType:
    """Returns the type of a field that may also be null. A null field counts as absent."""
    return FieldType(
        f"{field_type.description}, or null",
        lambda value: value is None or field_type.is_valid(value),
    )


COUNT = FieldType("a whole number above 0", lambda value: type(value) is int and value > 0)
POSITIVE = FieldType(
    "a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf
)
SWITCH = FieldType("true or false", lambda value: isinstance(value, bool))
NAMES = FieldType(
    "a list of names",
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
)
RECORD = FieldType("an object of fields", lambda value: isinstance(value, dict))
FILES = FieldType(
    "the file of each tensor",
    lambda value: isinstance(value, dict) and NAMES.is_valid([*value.values()]),
)
TOKEN = FieldType("a token's number", lambda value: type(value) is int)
TOKENS = FieldType(
    "a token's number, or a list of them",
    lambda value: (
        TOKEN.is_valid(value) or isinstance(value, list) and all(map(TOKEN.is_valid, value))
    ),
)
# The type of every field that this package reads, in any JSON file of a model folder and in the
# objects `rope_parameters` and `rope_scaling` of config.json.
FIELD_TYPES = {
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
    """Returns the fields of a JSON file in a model folder.

    Raises:
      ModelFolderError: the file cannot be read, or a value does not have the type in FIELD_TYPES.
    """
    hint = "replace it with the checkpoint's own file"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFolderError(f"{path} cannot be read ({reason}): {hint}") from error
    if not isinstance(fields, dict):
        raise ModelFolderError(
            f"{path} holds {json.dumps(fields):.60}, not an object of fields: {hint}"
        )
    for record in (fields, fields.get("rope_parameters"), fields.get("rope_scaling")):
        for name, value in record.items() if isinstance(record, dict) else ():
            if name in FIELD_TYPES and not FIELD_TYPES[name].is_valid(value):
                raise ModelFolderError(
                    f"{path}: {name}={json.dumps(value):.60}: give {FIELD_TYPES[name].description}"
                )
    return fields


def read_config(folder: str | pathlib.Path, **choices: Any) -> TransformerConfig:
    """Returns the architecture that `folder`/config.json describes.

    Args:
      folder: the model folder.
      choices: the fields of TransformerConfig that config.json does not decide, such as dtype.

    Raises:
      ModelFolderError: the architecture or a value of a field is not supported.
    """
    if not os.path.isdir(folder):  # pathlib would read "" as the current folder
        hint = (
            "download a model of the Hub first (hf download NAME --local-dir FOLDER) "
            "and give the folder of the download"
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
        for field, value in ONLY_SUPPORTED_VALUES.items():
            if fields.get(field, value) != value:
                hint = f"only {value} is supported: give another checkpoint"
                raise ModelFolderError(f"{field}={fields[field]}: {hint}")
        if any(layer_type != "full_attention" for layer_type in fields.get("layer_types") or []):
            layer_types = ", ".join(sorted(set(fields["layer_types"])))
            hint = "only full_attention is supported: give another checkpoint"
            raise ModelFolderError(f"layer_types={layer_types}: {hint}")
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
        raise ModelFolderError(f"{path}: the field {error} is missing: add the field") from error
    except ModelFolderError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    except FieldError as error:  # the decoder does not support the architecture
        raise ModelFolderError(f"{path}: {error}, or another checkpoint") from error


def max_positions(folder: str | pathlib.Path) -> int | None:
    """Returns the longest sequence of the checkpoint, in tokens; None if config.json has no limit.

    Raises:
      ModelFolderError: config.json cannot be used.
    """
    return read_json(pathlib.Path(folder) / "config.json").get("max_position_embeddings")


def read_rope(fields: dict) -> tuple[float, RopeScaling | None]:
    """Returns theta and the scaling of the rotary positions.

    They are read from `rope_parameters`, or from the older fields `rope_theta` and `rope_scaling`.

    Raises:
      KeyError: a field of the scaling is missing.
      ModelFolderError: the new and the old fields contradict each other, or the type of scaling is
        not supported.
    """
    ropes = [fields[name] for name in ("rope_parameters", "rope_scaling") if fields.get(name)]
    scalings = [
        {name: value for name, value in rope.items() if name != "rope_theta"} for rope in ropes
    ]
    thetas = {float(rope["rope_theta"]) for rope in ropes if "rope_theta" in rope}
    if len(thetas) > 1 or (len(scalings) == 2 and scalings[0] != scalings[1]):
        raise ModelFolderError(
            "rope_parameters and rope_scaling contradict each other: remove one of them"
        )
    rope = ropes[0] if ropes else {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        value = rope["partial_rotary_factor"]
        raise ModelFolderError(
            f"partial_rotary_factor={value}: only 1.0 is supported: give another checkpoint"
        )
    if rope_type == "default":
        return theta, None
    if rope_type != "llama3":
        raise ModelFolderError(
            f"rope_type={rope_type} is not supported: give a checkpoint with default or llama3"
        )
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position=rope["original_max_position_embeddings"],
    )


def write_config(config: TransformerConfig, base: dict) -> dict:
    """Returns the fields of a config.json for this architecture.

    The fields of `base` are kept, except the fields that the architecture decides.

    Raises:
      ModelFolderError: the policy has both biases and norms of q/k. No supported architecture has
        both.
    """
    families = {(family.qkv_bias, family.qk_norm): name for name, family in FAMILIES.items()}
    name = families.get((config.qkv_bias, config.qk_norm))
    if name is None:
        hint = "set one of them to False"
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
        # The older fields, which every version of `transformers` reads.
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
