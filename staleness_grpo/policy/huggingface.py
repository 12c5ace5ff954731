"""Checkpoint folders of the Llama and Qwen family: config.json and *.safetensors to a policy and its parameters, and
back. Needs the package `safetensors` (the `hf` extra).

Tensors are read one by one, each into its sharding, and of each the parts that the host's devices hold: besides the
parameters, the host holds one tensor at a time.
"""

import functools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from staleness_grpo import mesh as mesh_lib
from staleness_grpo.policy.huggingface_config import CheckpointError, read_config, read_json, write_config
from staleness_grpo.policy.transformer import Policy, TransformerConfig
from staleness_grpo.types import PyTree

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template.jinja", "vocab.json",
              "merges.txt", "added_tokens.json")  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")  # as the files name them
SHARD_BYTES = 4 * 2**30  # of a saved file, at most, unless one tensor is larger

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


def load(
    folder: str | pathlib.Path, *, dtype: str = "float32", param_dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Policy, PyTree]:
    """The policy in a checkpoint folder and its parameters.

    Args:
      folder: with config.json and model.safetensors, or the index of several files.
      dtype: of activations; log-probabilities are float32 or better whatever it is.
      param_dtype: of the parameters, whatever the file has.
      mesh: over which the parameters are sharded; by default the first device.

    Raises:
      CheckpointError: for an unsupported architecture, or missing, extra, misshapen, not floating or not finite
        tensors, by name.
    """
    policy = Policy(read_config(folder, dtype=dtype, param_dtype=param_dtype))
    return policy, load_params(folder, policy, mesh_lib.make_mesh() if mesh is None else mesh)


def load_params(folder: str | pathlib.Path, policy: Policy, mesh: Mesh) -> PyTree:
    """The parameters of `policy` from the folder's files, in `param_dtype`, sharded over `mesh`.

    Raises:
      CheckpointError: as `check_tensors`, and for tensors that are not finite in `param_dtype`.
    """
    files = check_tensors(folder, policy.config)
    abstract = abstract_params(policy)
    shardings = mesh_lib.parameter_shardings(abstract, mesh)
    finite = dict.fromkeys(files, True)

    def read(path, leaf, sharding):
        name, shape = stored_name(path), sharding.shard_shape(leaf.shape)

        @functools.cache  # several devices may hold the same part
        def part(bounds):
            stored = read_tensor(files[name], name, tuple(slice(*bound) for bound in bounds))
            with np.errstate(over="ignore"):  # refused below
                host = (stored.T if transposed(path) else stored).reshape(shape).astype(leaf.dtype)
            finite[name] &= bool(np.isfinite(host).all())
            return host

        bounds = functools.partial(stored_bounds, path, leaf.shape)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: part(bounds(index)))

    params = jax.tree_util.tree_map_with_path(read, abstract, shardings)
    # Each process has seen its own parts: they agree, so that all of them end.
    counts = mesh_lib.sum_over_processes(~np.array([*finite.values()]))
    if names := [name for name, count in zip(finite, counts, strict=True) if count]:
        problem = f"{len(names)} tensors are not finite in {policy.config.param_dtype}"
        raise CheckpointError(f"{folder}: {problem}: {', '.join(names[:8])}: give another checkpoint")
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
    """Writes a folder that `load`, and the `transformers` library, read as the same policy, in `param_dtype`.

    The folder is made; weights that it holds already, in however many files, are replaced. Of several processes all
    call this, and the first one writes.

    Args:
      folder: to write.
      policy: whose parameters they are.
      params: sharded or not.
      source: the checkpoint folder that the policy was loaded from, if any: its tokenizer, its generation settings and
        what else its config.json says go along.
      end_token: what ends a response, of a policy without `source`; None: nothing does.
      pad_token: what stands behind that, of a policy without `source`.

    Raises:
      CheckpointError: if the source cannot be read, before anything is written, or for a policy of no architecture.
      OSError: for a full disk, among others.
    """
    first = jax.process_index() == 0

    folder = pathlib.Path(folder)
    # Where these are absent, transformers has numbers of its own.
    base = dict(bos_token_id=None, eos_token_id=end_token, pad_token_id=pad_token)
    config = write_config(policy.config, base if source is None else read_json(pathlib.Path(source) / "config.json"))
    folder.mkdir(parents=True, exist_ok=True)
    if first and source is not None and not folder.samefile(source):
        for pattern in COMPANIONS:
            for path in pathlib.Path(source).glob(pattern):
                shutil.copyfile(path, folder / path.name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shards = list(split_by_size(leaves, SHARD_BYTES))
    files = [WHOLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
                                              for i in range(len(shards))]  # fmt: skip
    weight_map = {}
    for file, shard in zip(files, shards, strict=True):
        tensors = {stored_name(path): to_stored(path, mesh_lib.get_whole(leaf)) for path, leaf in shard}
        if first:
            write_tensors(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    if not first:
        return
    for path in (folder / INDEX, *folder.glob("model*.safetensors")):  # older weights, which `load` might prefer
        if path.name not in files:
            path.unlink(missing_ok=True)
    if len(shards) > 1:
        total = sum(leaf.nbytes for _, leaf in leaves)
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_tensors(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """One file of weights. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers wants to read the format
    except SafetensorError as error:  # which has the system's number in its text alone
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def check_tensors(folder: str | pathlib.Path, config: TransformerConfig) -> dict[str, pathlib.Path]:
    """The file of each tensor, after comparing names and shapes with the architecture; reads headers alone.

    A file of tied embeddings may hold the head all the same, if it equals the embedding.

    Raises:
      CheckpointError: naming what is missing, extra, misshapen or not floating, or the file that cannot be read.
    """
    found = stored_tensors(pathlib.Path(folder))
    expected = {
        stored_name(path): stored_shape(path, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(Policy(config)))
    }
    embedding, head = NAMES["embedding"], NAMES["head"]
    copy = config.tie_embeddings and {embedding, head} <= set(found)
    if copy and not np.array_equal(*(read_tensor(found[name][0], name) for name in (embedding, head))):
        raise CheckpointError(f"{folder}: {head} differs from {embedding}: set tie_word_embeddings to false")
    extra = set(found) - set(expected) - ({head} if copy else set())
    mend = "put the config.json and all weights of one checkpoint there"
    for problem, names in (("missing", set(expected) - set(found)), ("not of this architecture", extra)):
        if names:
            listed = ", ".join(sorted(names)[:8])
            raise CheckpointError(f"{folder}: {len(names)} tensors are {problem}: {listed}: {mend}")
    for name, shape in expected.items():
        if found[name][1] != shape:
            raise CheckpointError(f"{folder}: {name} has shape {found[name][1]}, config.json makes it {shape}: {mend}")
    return {name: found[name][0] for name in expected}


def stored_tensors(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, tuple[int, ...]]]:
    """File and shape of every tensor in the folder, by name. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    if (folder / WHOLE).exists():
        files = [WHOLE]
    elif (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if weight_map is None:
            raise CheckpointError(f"{folder / INDEX}: the field 'weight_map' is missing: add it")
        files = sorted(set(weight_map.values()))
    else:
        raise CheckpointError(f"{folder} has neither {WHOLE} nor {INDEX}: put the weights there, as safetensors")
    found = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="numpy") as tensors:
                for name in tensors.keys():
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # of old files; the rotary frequencies follow from config.json
                    tensor = tensors.get_slice(name)
                    if (dtype := tensor.get_dtype()) not in FLOATING:
                        mend = f"give a checkpoint in {', '.join(FLOATING)}"
                        raise CheckpointError(f"{folder / file}: {name} is of type {dtype}: {mend}")
                    found[name] = folder / file, tuple(tensor.get_shape())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / file} cannot be read ({error}): put the whole file there") from error
    return found


def read_tensor(file: pathlib.Path, name: str, index=...) -> np.ndarray:
    """A part of one tensor. The file is opened for it alone: an open one keeps in memory all that was read from it."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return tensors.get_slice(name)[index]


def abstract_params(policy: Policy) -> PyTree:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(policy.init, jax.random.key(0))


def leaf_name(path: tuple) -> str:
    """'layer_0_mlp/gate/kernel'."""
    return "/".join(key.key for key in path)


def stored_name(path: tuple) -> str:
    """The name of a leaf in the file."""
    if layer := re.fullmatch(r"layer_(\d+)_(.+)", leaf_name(path)):
        return f"model.layers.{layer[1]}.{NAMES[layer[2]]}"
    return NAMES[leaf_name(path)]


def transposed(path: tuple) -> bool:
    """Whether the file has the outputs of this linear map first."""
    return path[-1].key in ("kernel", "head")


def stored_axes(path: tuple, ndim: int) -> list[range]:
    """The leaf's axes that make each axis in the file, where heads and their features are one."""
    if not transposed(path):
        return [range(1), range(1, 2)] if path[-1].key == "embedding" else [range(ndim)]
    inputs = 2 if path[-2:-1] and path[-2].key == "out" else 1
    return [range(inputs, ndim), range(inputs)]


def stored_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf in the file."""
    return tuple(math.prod(shape[axis] for axis in axes) for axes in stored_axes(path, len(shape)))


def stored_bounds(path: tuple, shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[tuple[int, int], ...]:
    """(start, stop) on each axis in the file of a leaf's part: heads may be split up, the features of one are not."""
    bounds = []
    for first, *rest in stored_axes(path, len(shape)):
        start, stop, _ = index[first].indices(shape[first])
        size = math.prod(shape[axis] for axis in rest)
        bounds.append((start * size, stop * size))
    return tuple(bounds)


def to_stored(path: tuple, leaf: np.ndarray) -> np.ndarray:
    """A leaf as the file has it."""
    shape = stored_shape(path, leaf.shape)
    return np.ascontiguousarray(leaf.reshape(shape[::-1]).T if transposed(path) else leaf.reshape(shape))


def split_by_size(leaves: list, limit: int) -> Iterable[list]:
    """Consecutive (path, leaf) in lists of at most `limit` bytes, or of one leaf."""
    shard, size = [], 0
    for path, leaf in leaves:
        if shard and size + leaf.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append((path, leaf))
        size += leaf.nbytes
    yield shard
