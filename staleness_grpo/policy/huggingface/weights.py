"""Reads and writes the *.safetensors files of a model folder. Needs the package `safetensors`."""

import json
import os
import pathlib
import re
from collections.abc import Iterator
from types import EllipsisType

import numpy as np

from staleness_grpo.policy.huggingface.config import ModelFolderError, read_json
from staleness_grpo.types import Array

WHOLE = "model.safetensors"  # all weights in one file
INDEX = "model.safetensors.index.json"  # names the file of each tensor, if there are several files
FLOATING = ("F64", "F32", "F16", "BF16")  # floating-point types, as the files name them
SHARD_BYTES = 4 * 2**30  # the most in one saved file, unless one tensor alone is larger


def stored_tensors(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, tuple[int, ...]]]:
    """Returns the file and the shape of every tensor in the folder, by name; reads headers alone.

    Raises:
      ModelFolderError: there are no weights, a file cannot be read, or a tensor is not floating.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, tuple[pathlib.Path, tuple[int, ...]]] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # in old files; the rotary frequencies follow from config.json
                    tensor = file.get_slice(name)
                    if (dtype := tensor.get_dtype()) not in FLOATING:
                        hint = f"give a checkpoint in {', '.join(FLOATING)}"
                        raise ModelFolderError(f"{path}: {name} is of type {dtype}: {hint}")
                    tensors[name] = path, tuple(tensor.get_shape())
        except (OSError, SafetensorError) as error:
            hint = "put the whole file there"
            raise ModelFolderError(f"{path} cannot be read ({error}): {hint}") from error
    return tensors


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold the weights. Raises ModelFolderError."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        hint = "put the weights there, as safetensors"
        raise ModelFolderError(f"{folder} has neither {WHOLE} nor {INDEX}: {hint}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if weight_map is None:
        raise ModelFolderError(f"{folder / INDEX}: the field 'weight_map' is missing: add it")
    return [folder / name for name in sorted(set(weight_map.values()))]


def read_tensor(
    path: pathlib.Path, name: str, index: tuple[slice, ...] | EllipsisType = ...
) -> np.ndarray:
    """Reads a part of one tensor.

    The file is opened for each part, because an open one keeps in memory all that was read from it.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[index]


def write_tensors(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes one file of weights. Raises OSError, for example for a full disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(
            tensors, path, metadata={"format": "pt"}
        )  # transformers refuses a file without it
    except SafetensorError as error:  # has the number of the system's error in its text alone
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def split_by_size(
    leaves: list[tuple[tuple, Array]], limit: int
) -> Iterator[list[tuple[tuple, Array]]]:
    """Cuts (path, leaf) pairs, in their order, into lists of at most `limit` bytes, or one leaf."""
    shard: list[tuple[tuple, Array]] = []
    size = 0
    for path, leaf in leaves:
        if shard and size + leaf.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append((path, leaf))
        size += leaf.nbytes
    yield shard


def file_names(num_files: int) -> list[str]:
    """Returns the names of the files of a checkpoint that is saved in so many."""
    if num_files == 1:
        return [WHOLE]
    return [f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]


def remove_other_weights(folder: pathlib.Path, kept: list[str]) -> None:
    """Removes older weights and their index, which reading might prefer to the files in `kept`."""
    for path in (folder / INDEX, *folder.glob("model*.safetensors")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def write_index(folder: pathlib.Path, weight_map: dict[str, str], total_size: int) -> None:
    """Writes the index of a checkpoint in several files: the file of each tensor, and all bytes."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2))
