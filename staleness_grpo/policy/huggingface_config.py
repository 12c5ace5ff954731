"""config.json of the Llama and Qwen family to a TransformerConfig, and back."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from staleness_grpo.policy.transformer import RopeScaling, TransformerConfig


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message names the file, the field or tensor, and a mend."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What an architecture's name says that its config.json does not."""

    model_type: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None  # without a `head_dim`; None: hidden_size / num_attention_heads


FAMILIES = {
    "LlamaForCausalLM": Family("llama"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True),
    "Qwen3ForCausalLM": Family("qwen3", qk_norm=True, head_dim=128),
}

# Fields that change the computation, with the one value that this decoder computes. Absent is as good.
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
    """What a field may hold, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def or_null(kind: Kind) -> Kind:
    """The same, of a field for which null is as good as absent."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.accepts(value))


COUNT = Kind("a whole number above 0", lambda value: type(value) is int and value > 0)
POSITIVE = Kind("a number above 0", lambda value: type(value) in (int, float) and 0 < value < math.inf)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
NAMES = Kind("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value))
RECORD = Kind("an object of fields", lambda value: isinstance(value, dict))
FILES = Kind("the file of each tensor", lambda value: isinstance(value, dict) and NAMES.accepts([*value.values()]))
TOKEN = Kind("a token's number", lambda value: type(value) is int)
TOKENS = Kind(
    "a token's number, or a list of them",
    lambda value: TOKEN.accepts(value) or isinstance(value, list) and all(map(TOKEN.accepts, value)),
)
# The fields whose values are used: of any file of a checkpoint, and of the records of rotary positions in config.json.
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
    """The fields in a JSON file of a checkpoint; those in FIELDS hold what is said there. Raises CheckpointError."""
    mend = "put the checkpoint's own file there"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read ({reason}): {mend}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} holds {json.dumps(fields):.60}, not an object of fields: {mend}")
    for record in (fields, fields.get("rope_parameters"), fields.get("rope_scaling")):
        for name, value in record.items() if isinstance(record, dict) else ():
            if name in FIELDS and not FIELDS[name].accepts(value):
                raise CheckpointError(f"{path}: {name}={json.dumps(value):.60}: give {FIELDS[name].words}")
    return fields


def read_config(folder: str | pathlib.Path, **choices) -> TransformerConfig:
    """The architecture in `folder`/config.json.

    Args:
      folder: of the checkpoint.
      choices: the fields of TransformerConfig that are not the architecture's: dtype, param_dtype and the like.

    Raises:
      CheckpointError: for an architecture, or a field's value, that this decoder does not compute.
    """
    if not os.path.isdir(folder):  # unlike pathlib, which takes "" for the current one
        mend = "download a model of the Hub first (hf download NAME --local-dir FOLDER) and give its folder"
        raise CheckpointError(f"there is no folder {str(folder)!r}: {mend}")
    path = pathlib.Path(folder) / "config.json"
    fields = read_json(path)
    try:
        name = next(iter(fields.get("architectures") or []), None)
        family = FAMILIES.get(name)
        if family is None:
            raise CheckpointError(f"the architecture {name} is not supported: give one of {', '.join(FAMILIES)}")
        for field, value in REQUIRED.items():
            if fields.get(field, value) != value:
                only = f"only {value}: give another checkpoint"
                raise CheckpointError(f"{field}={fields[field]} is not supported, {only}")
        if any(kind != "full_attention" for kind in fields.get("layer_types") or []):
            kinds = ", ".join(sorted(set(fields["layer_types"])))
            raise CheckpointError(f"layer_types has {kinds}, supported is only full_attention: give another checkpoint")
        heads = fields["num_attention_heads"]
        theta, scaling = read_rope(fields)
        return TransformerConfig(
            vocab_size=fields["vocab_size"],
            num_layers=fields["num_hidden_layers"],
            d_model=fields["hidden_size"],
            num_heads=heads,
            num_kv_heads=heads if (kv_heads := fields.get("num_key_value_heads")) is None else kv_heads,
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
        raise CheckpointError(f"{path}: the field {error} is missing: add it") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:  # a shape that the decoder cannot have
        raise CheckpointError(f"{path}: {error}: give another checkpoint") from error


def max_positions(folder: str | pathlib.Path) -> int | None:
    """The longest sequence that the checkpoint is made for, if `folder`/config.json says it. Raises CheckpointError."""
    return read_json(pathlib.Path(folder) / "config.json").get("max_position_embeddings")


def read_rope(fields: dict) -> tuple[float, RopeScaling | None]:
    """theta and the scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    spellings = [fields[name] for name in ("rope_parameters", "rope_scaling") if fields.get(name)]
    old_and_new = [{name: value for name, value in rope.items() if name != "rope_theta"} for rope in spellings]
    if len(spellings) == 2 and old_and_new[0] != old_and_new[1]:
        raise CheckpointError("rope_parameters and rope_scaling contradict each other: leave one of them out")
    rope = spellings[0] if spellings else {}
    theta = float(rope.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        value = rope["partial_rotary_factor"]
        raise CheckpointError(f"partial_rotary_factor={value} is not supported, only 1.0: give another checkpoint")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise CheckpointError(f"rope_type={kind} is not supported: give a checkpoint with default or llama3")
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position=rope["original_max_position_embeddings"],
    )


def write_config(config: TransformerConfig, base: dict) -> dict:
    """The fields of a config.json for this architecture, over those of `base` that it does not decide.

    Raises:
      CheckpointError: for biases and norms together, which no supported architecture has.
    """
    families = {(family.qkv_bias, family.qk_norm): name for name, family in FAMILIES.items()}
    name = families.get((config.qkv_bias, config.qk_norm))
    if name is None:
        raise CheckpointError("no architecture has both qkv_bias and qk_norm: a policy with both cannot be saved")
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
        "rope_theta": config.rope_theta,  # the older spelling, which every version of transformers reads
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
    kept = {field: value for field, value in base.items() if field not in ("rope_parameters", *fields)}
    return {**fields, **kept}
