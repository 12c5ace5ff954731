"""Loads and saves policies as model folders: config.json and *.safetensors.

Needs the package `safetensors` (the `hf` extra).

Tensors are read one after another and sharded at once. Of each tensor, a host reads only the parts
that its own devices hold. So besides the parameters, a host has at most one tensor in memory.
"""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.huggingface import layout, weights
from staleness_grpo.policy.huggingface.config import (
    ModelFolderError,
    read_config,
    read_json,
    write_config,
)
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.types import PyTree

# The tokenizer and settings that `save` copies from the folder from which a policy was loaded.
COPIED_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
MAX_LISTED_NAMES = 8  # most names of tensors in one error message


def load(
    folder: str | pathlib.Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    mesh: Mesh | None = None,
) -> tuple[Policy, PyTree]:
    """Returns the policy in a model folder, and its parameters.

    Args:
      folder: has config.json, and model.safetensors or the index of several files.
      dtype: of activations. With any dtype, log-probabilities have at least float32 precision.
      param_dtype: of the parameters. The tensors in the file are converted to this type.
      mesh: the mesh over which the parameters are sharded; by default the first device.

    Raises:
      ModelFolderError: the architecture is not supported. Or tensors are missing, unexpected, of
        the wrong shape, not of a floating-point type, or not finite. The message names them.
    """
    policy = Policy(read_config(folder, dtype=dtype, param_dtype=param_dtype))
    return policy, load_params(folder, policy, mesh_lib.make_mesh() if mesh is None else mesh)


def load_params(folder: str | pathlib.Path, policy: Policy, mesh: Mesh) -> PyTree:
    """Returns the parameters of `policy` in `param_dtype`, sharded over `mesh`.

    Raises:
      ModelFolderError: `check_tensors` raises it, or tensors are not finite in `param_dtype`.
    """
    files = check_tensors(folder, policy.config)
    abstract = layout.abstract_params(policy)
    shardings = mesh_lib.parameter_shardings(abstract, mesh)
    is_finite = dict.fromkeys(files, True)

    def read_leaf(path, leaf, sharding):
        name, shape = layout.stored_name(path), sharding.shard_shape(leaf.shape)

        @functools.cache  # several devices may hold the same part
        def read_part(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
            index = tuple(slice(*bound) for bound in bounds)
            tensor = weights.read_tensor(files[name], name, index)
            with np.errstate(over="ignore"):  # overflow gives inf, which raises an error below
                part = layout.from_stored(path, tensor, shape).astype(leaf.dtype)
            is_finite[name] &= bool(np.isfinite(part).all())
            return part

        return jax.make_array_from_callback(
            leaf.shape,
            sharding,
            lambda index: read_part(layout.stored_bounds(path, leaf.shape, index or ())),
        )

    params = jax.tree_util.tree_map_with_path(read_leaf, abstract, shardings)
    # Each process checked only its own parts. The processes add up their results, so that all of
    # them raise the same error.
    counts = mesh_lib.sum_over_processes(~np.array([*is_finite.values()]))
    if names := [name for name, count in zip(is_finite, counts, strict=True) if count]:
        problem = f"{len(names)} tensors are not finite in {policy.config.param_dtype}"
        listed = ", ".join(names[:MAX_LISTED_NAMES])
        raise ModelFolderError(f"{folder}: {problem}: {listed}: give another checkpoint")
    return params


def save(
    folder: str | pathlib.Path,
    policy: Policy,
    params: PyTree,
    source: str | pathlib.Path | None = None,
    *,
    end_token: int | tuple[int, ...] | None = None,
    pad_token: int | None = None,
) -> None:
    """Writes a model folder, which `load` and the library `transformers` can read.

    The weights are written in `param_dtype`. The folder is made if needed. All weight files that
    are already in the folder are replaced. With several processes, all of them must call this
    function. Only the first process writes.

    Args:
      folder: the folder to write.
      policy: the policy that the parameters belong to.
      params: the parameters, sharded or not.
      source: the model folder that the policy was loaded from, if any. Its tokenizer, its
        generation settings and the other fields of its config.json are copied.
      end_token: the token or tokens that end a response; None if no token does. Used without
        `source`.
      pad_token: the token that fills the positions after the end. Used without `source`.

    Raises:
      ModelFolderError: the source cannot be read, or no known architecture has the policy's
        settings. In both cases nothing is written.
      OSError: a file cannot be written, for example because the disk is full.
    """
    is_first_process = jax.process_index() == 0
    folder = pathlib.Path(folder)
    # None is written as null, because `transformers` uses its own default tokens for absent fields.
    base = dict(bos_token_id=None, eos_token_id=end_token, pad_token_id=pad_token)
    config = write_config(
        policy.config, base if source is None else read_json(pathlib.Path(source) / "config.json")
    )
    folder.mkdir(parents=True, exist_ok=True)
    if is_first_process and source is not None and not folder.samefile(source):
        for pattern in COPIED_FILES:
            for path in filter(pathlib.Path.is_file, pathlib.Path(source).glob(pattern)):
                shutil.copyfile(path, folder / path.name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shards = list(weights.split_by_size(leaves, weights.SHARD_BYTES))
    files = weights.file_names(len(shards))
    weight_map: dict[str, str] = {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {
            layout.stored_name(path): layout.to_stored(path, mesh_lib.get_whole(leaf))
            for path, leaf in shard
        }
        if is_first_process:
            weights.write_tensors(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    if not is_first_process:
        return
    weights.remove_other_weights(folder, files)
    if len(shards) > 1:
        weights.write_index(folder, weight_map, sum(leaf.nbytes for _, leaf in leaves))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_tensors(folder: str | pathlib.Path, config: TransformerConfig) -> dict[str, pathlib.Path]:
    """Returns the file of each tensor, and checks names and shapes against the architecture.

    Only headers are read, with one exception. With tied embeddings, the folder may also have the
    head, if it equals the embedding. Then both tensors are read and compared.

    Raises:
      ModelFolderError: a file cannot be read. Or tensors are missing, unexpected, of the wrong
        shape, or not of a floating-point type. The message names the file or the tensors.
    """
    stored = weights.stored_tensors(pathlib.Path(folder))
    abstract = layout.abstract_params(Policy(config))
    expected = {
        layout.stored_name(path): layout.stored_shape(path, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    embedding, head = layout.NAMES["embedding"], layout.NAMES["head"]
    copied_head = config.tie_embeddings and {embedding, head} <= set(stored)
    if copied_head and not np.array_equal(
        weights.read_tensor(stored[embedding][0], embedding),
        weights.read_tensor(stored[head][0], head),
    ):
        raise ModelFolderError(
            f"{folder}: {head} differs from {embedding}: "
            "set tie_word_embeddings to false in config.json"
        )
    extra = set(stored) - set(expected) - ({head} if copied_head else set())
    hint = "copy config.json and all weights of one checkpoint into this folder"
    for problem, names in (
        ("missing", set(expected) - set(stored)),
        ("not of this architecture", extra),
    ):
        if names:
            listed = ", ".join(sorted(names)[:MAX_LISTED_NAMES])
            raise ModelFolderError(
                f"{folder}: {len(names)} tensors are {problem}: {listed}: {hint}"
            )
    for name, shape in expected.items():
        if (stored_shape := stored[name][1]) != shape:
            problem = f"{name} has shape {stored_shape}, but config.json requires {shape}"
            raise ModelFolderError(f"{folder}: {problem}: {hint}")
    return {name: stored[name][0] for name in expected}
