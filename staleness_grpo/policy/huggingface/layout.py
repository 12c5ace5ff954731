"""Maps the parameters of a policy to the tensors of a model folder: names, axes and shapes.

`path` is the tuple of keys that leads to a leaf in the tree of parameters, as returned by JAX.
"""

import math
import re

import jax
import numpy as np

from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import PyTree

# Path of a leaf below its layer -> name of the tensor in the file below its layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "final_norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
    "attention_norm/scale": "input_layernorm.weight",
    "attention/query/kernel": "self_attn.q_proj.weight",
    "attention/key/kernel": "self_attn.k_proj.weight",
    "attention/value/kernel": "self_attn.v_proj.weight",
    "attention/query/bias": "self_attn.q_proj.bias",
    "attention/key/bias": "self_attn.k_proj.bias",
    "attention/value/bias": "self_attn.v_proj.bias",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention/out/kernel": "self_attn.o_proj.weight",
    "mlp_norm/scale": "post_attention_layernorm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}


def abstract_params(policy: Policy) -> PyTree:
    """Returns the shapes and dtypes of the parameters."""
    return jax.eval_shape(policy.init, jax.random.key(0))


def leaf_name(path: tuple) -> str:
    """Returns the keys of a path joined by slashes, such as 'layer_0_mlp/gate/kernel'."""
    return "/".join(key.key for key in path)


def stored_name(path: tuple) -> str:
    """Returns the name of a leaf's tensor in the file."""
    if layer := re.fullmatch(r"layer_(\d+)_(.+)", leaf_name(path)):
        return f"model.layers.{layer[1]}.{NAMES[layer[2]]}"
    return NAMES[leaf_name(path)]


def transposed(path: tuple) -> bool:
    """Returns whether the leaf is a linear map, which the file stores with the outputs first."""
    return path[-1].key in ("kernel", "head")


def stored_axes(path: tuple, ndim: int) -> list[range]:
    """Returns, for each axis of the tensor in the file, the axes of the leaf that are joined to it.

    For example, heads and features are two axes of a leaf and one axis of the tensor.
    """
    if not transposed(path):
        return [range(1), range(1, 2)] if path[-1].key == "embedding" else [range(ndim)]
    inputs = 2 if path[-2:-1] and path[-2].key == "out" else 1
    return [range(inputs, ndim), range(inputs)]


def stored_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in the file of a leaf with this shape."""
    return tuple(math.prod(shape[axis] for axis in axes) for axes in stored_axes(path, len(shape)))


def stored_bounds(
    path: tuple, shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[tuple[int, int], ...]:
    """Returns the part `index` of a leaf as (start, stop) on each axis of the tensor in the file.

    The part may have only some of the heads, but has all features of each head.
    """
    bounds = []
    for first_axis, *other_axes in stored_axes(path, len(shape)):
        start, stop, _ = index[first_axis].indices(shape[first_axis])
        size = math.prod(shape[axis] for axis in other_axes)
        bounds.append((start * size, stop * size))
    return tuple(bounds)


def to_stored(path: tuple, leaf: np.ndarray) -> np.ndarray:
    """Converts a leaf to the tensor that the file stores."""
    shape = stored_shape(path, leaf.shape)
    return np.ascontiguousarray(
        leaf.reshape(shape[::-1]).T if transposed(path) else leaf.reshape(shape)
    )


def from_stored(path: tuple, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Converts a tensor of the file, or a part of one, to the leaf, or part, with this shape."""
    return (tensor.T if transposed(path) else tensor).reshape(shape)
