"""Reads and writes the *.safetensors files of a model folder, with the package `safetensors`."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from types import EllipsisType

import numpy as np

from staleness_grpo.policy.huggingface.config import ModelFolderError, read_json
from staleness_grpo.types import Array

WHOLE = "model.safetensors"  # has all weights, if they are in a single file
INDEX = "model.safetensors.index.json"  # lists the file of each tensor, if there are several files
FLOATING = ("F64", "F32", "F16", "BF16")  # names of the floating-point types in the files
NUM_PARTS, PART_BYTES = 64, 2**16  # of each file that `weights_digest` reads
SHARD_BYTES = 4 * 2**30  # largest size of a saved file; only a file of one tensor may be larger


def stored_tensors(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, tuple[int, ...]]]:
    """Returns the file and the shape of every tensor in the folder, by the tensor's name.

    Only the headers of the files are read.

    Raises:
      ModelFolderError: there are no weights, a file cannot be read, or a tensor is not of a
        floating-point type.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, tuple[pathlib.Path, tuple[int, ...]]] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # in old files; the frequencies are computed from config.json
                    tensor = file.get_slice(name)
                    if (dtype := tensor.get_dtype()) not in FLOATING:
                        hint = f"give a checkpoint with tensors of type {', '.join(FLOATING)}"
                        raise ModelFolderError(f"{path}: {name} is of type {dtype}: {hint}")
                    tensors[name] = path, tuple(tensor.get_shape())
        except (OSError, SafetensorError) as error:
            hint = "replace it with the checkpoint's complete file"
            raise ModelFolderError(f"{path} cannot be read ({error}): {hint}") from error
    return tensors


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold the weights. Raises ModelFolderError if there are none."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        hint = "copy the weights into this folder, in the safetensors format"
        raise ModelFolderError(f"{folder} has neither {WHOLE} nor {INDEX}: {hint}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if weight_map is None:
        raise ModelFolderError(
            f"{folder / INDEX}: the field 'weight_map' is missing: add the field"
        )
    return [folder / name for name in sorted(set(weight_map.values()))]


def weights_digest(folder: str | pathlib.Path) -> str:
    """Returns a hash that tells the weights of a folder from others, without reading all of them.

    It takes the size of each file, its beginning with the names and shapes, and NUM_PARTS parts of
    PART_BYTES at equal distances. Training changes all weights, so a part of them tells.

    Raises:
      ModelFolderError: there are no weights.
      OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _weight_files(pathlib.Path(folder)):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for part in range(NUM_PARTS):
                file.seek(part * max(size - PART_BYTES, 0) // (NUM_PARTS - 1))
                digest.update(file.read(PART_BYTES))
    return digest.hexdigest()[:16]


def read_tensor(
    path: pathlib.Path, name: str, index: tuple[slice, ...] | EllipsisType = ...
) -> np.ndarray:
    """Reads a part of one tensor; by default the whole tensor.

    The file is opened anew for each part. An open file would keep in memory everything that was
    read from it.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[index]


def write_tensors(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes one file of weights. Raises OSError, for example if the disk is full."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        # The library `transformers` rejects a file without this metadata.
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # only its text has the operating system's error number
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        error_number = int(match[1])
        raise OSError(error_number, os.strerror(error_number), str(path)) from error


def split_by_size(
    leaves: list[tuple[tuple, Array]], limit: int
) -> Iterator[list[tuple[tuple, Array]]]:
    """Splits (path, leaf) pairs, in order, into lists of at most `limit` bytes or of one leaf."""
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
    """Returns the file names of a checkpoint that is saved in `num_files` files."""
    if num_files == 1:
        return [WHOLE]
    return [f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]


def remove_other_weights(folder: pathlib.Path, kept: list[str]) -> None:
    """Removes the index and all weight files of an older save, except the names in `kept`."""
    for path in (folder / INDEX, *folder.glob("model*.safetensors")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def write_index(folder: pathlib.Path, weight_map: dict[str, str], total_size: int) -> None:
    """Writes the index: the file name of each tensor, and the total size in bytes."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
