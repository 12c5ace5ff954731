"""Maps the parameters of a policy to the tensors of a model folder: names, axes and shapes.

`path` is a leaf's path of keys in the tree of parameters, as JAX gives it.
"""

import math
import re

import jax
import numpy as np

from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import PyTree

NAMES = {  # path of a leaf, from below its layer, to the name in the file
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
    """Joins the keys of a path, as in 'layer_0_mlp/gate/kernel'."""
    return "/".join(key.key for key in path)


def stored_name(path: tuple) -> str:
    """Returns the name that a leaf has in the file."""
    if layer := re.fullmatch(r"layer_(\d+)_(.+)", leaf_name(path)):
        return f"model.layers.{layer[1]}.{NAMES[layer[2]]}"
    return NAMES[leaf_name(path)]


def transposed(path: tuple) -> bool:
    """Says whether the leaf is a linear map whose outputs come first in the file."""
    return path[-1].key in ("kernel", "head")


def stored_axes(path: tuple, ndim: int) -> list[range]:
    """Returns, for each axis in the file, the axes of the leaf that make it.

    Heads and their features are two axes of a leaf and one axis in the file.
    """
    if not transposed(path):
        return [range(1), range(1, 2)] if path[-1].key == "embedding" else [range(ndim)]
    inputs = 2 if path[-2:-1] and path[-2].key == "out" else 1
    return [range(inputs, ndim), range(inputs)]


def stored_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a leaf of this shape has in the file."""
    return tuple(math.prod(shape[axis] for axis in axes) for axes in stored_axes(path, len(shape)))


def stored_bounds(
    path: tuple, shape: tuple[int, ...], index: tuple[slice, ...]
) -> tuple[tuple[int, int], ...]:
    """Returns (start, stop) on each axis in the file for the part `index` of a leaf.

    A part may be some of the heads, but has all features of each.
    """
    bounds = []
    for first, *rest in stored_axes(path, len(shape)):
        start, stop, _ = index[first].indices(shape[first])
        size = math.prod(shape[axis] for axis in rest)
        bounds.append((start * size, stop * size))
    return tuple(bounds)


def to_stored(path: tuple, leaf: np.ndarray) -> np.ndarray:
    """Turns a leaf into the tensor in the file."""
    shape = stored_shape(path, leaf.shape)
    return np.ascontiguousarray(
        leaf.reshape(shape[::-1]).T if transposed(path) else leaf.reshape(shape)
    )


def from_stored(path: tuple, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Turns a tensor in the file, or a part of it, into the leaf or part with this shape."""
    return (tensor.T if transposed(path) else tensor).reshape(shape)
