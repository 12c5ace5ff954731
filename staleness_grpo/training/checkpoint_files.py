"""Reads and writes the arrays and unread groups of a checkpoint, and digests its files."""

import dataclasses
import hashlib
import os
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from staleness_grpo.training.run import Groups
from staleness_grpo.types import Prompts, PyTree, Responses, Rollout

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """Says that a checkpoint is damaged, or has another config, format or array shape."""


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree in a dict from path to leaf, in the order of the tree.

    Orbax saves this dict. So the node types of the optimizer's state have no effect on the files.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def stacked(arrays: dict[str, PyTree]) -> dict[str, PyTree]:
    """Stacks the trees in `drift_versions` into one tree with a leading axis for the version.

    Orbax takes some time for each array, even a small one. So fewer arrays are saved faster.
    """
    if "drift_versions" not in arrays:
        return arrays
    return arrays | {"drift_versions": jax.tree.map(_stack, *arrays["drift_versions"])}


def _stack(*leaves: jax.Array) -> jax.Array:
    """Stacks arrays with equal sharding on the host, where a new count needs no compilation."""
    stacked_description = stacked_leaf(leaves[0], len(leaves))
    shards = zip(*(leaf.addressable_shards for leaf in leaves), strict=True)
    parts = [
        jax.device_put(
            np.stack([shard.data for shard in shards_of_device]), shards_of_device[0].device
        )
        for shards_of_device in shards
    ]
    return jax.make_array_from_single_device_arrays(
        stacked_description.shape, stacked_description.sharding, parts
    )


def stacked_leaf(leaf: Any, count: int) -> jax.ShapeDtypeStruct:
    """Returns the shape, dtype and sharding of `count` stacked versions of a leaf."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    sharding = NamedSharding(mesh, P(None, *spec))
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=sharding)


def unstacked(versions: PyTree, described: PyTree) -> list[PyTree]:
    """Returns the trees that `stacked` has stacked, each sharded like `described`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, described)
    take = jax.jit(
        lambda versions, index: jax.tree.map(lambda leaf: leaf[index], versions),
        out_shardings=shardings,
    )
    return [take(versions, index) for index in range(len(jax.tree.leaves(versions)[0]))]


# The structure of the groups in buffer_*.npz. Proximal log-probabilities are left out, because they
# are computed when a group is read from the buffer.
_ROLLOUT = Rollout(
    prompts=Prompts(0, 0, 0),  # type: ignore[arg-type]  # only the leaves' names are used
    responses=Responses(0, 0, 0),  # type: ignore[arg-type]  # only names are used
    rewards_NxG=0,  # type: ignore[arg-type]  # only names are used
    behavior_version_N=0,  # type: ignore[arg-type]  # only names are used
    reward_outcome_NxG=0,  # type: ignore[arg-type]  # only names are used
)
# Fields that only some runs have: those whose reward is a weighted sum, and those whose weights
# change while a group is sampled.
_OPTIONAL = ("reward_components_NxGxO", "token_version_NxR")


def write_groups(path: pathlib.Path, groups: Groups) -> None:
    """Writes unread groups as named arrays [W, ...]."""
    index_arrays = {
        "steps_W": groups.steps_W,
        "slots_W": groups.slots_W,
        "versions_W": groups.versions_W,
    }
    np.savez(path, **index_arrays | by_path(groups.rollout))


def read_groups(path: pathlib.Path) -> Groups:
    """Reads a file that `write_groups` wrote. Raises CheckpointError if the file is damaged."""
    try:
        with np.load(path) as stored:
            saved = dict(stored)
        indices_W = saved["steps_W"], saved["slots_W"], saved["versions_W"]
        if not indices_W[0].size:
            return Groups(*indices_W, rollout=None)
        present: dict[str, Any] = {name: 0 for name in _OPTIONAL if f".{name}" in saved}
        structure = dataclasses.replace(_ROLLOUT, **present)
        leaves = [saved[name] for name in by_path(structure)]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"its file {path.name} cannot be read: {error}") from error
    rollout = jax.tree.unflatten(jax.tree.structure(structure), leaves)
    return Groups(*indices_W, rollout=rollout)


def digests(folder: pathlib.Path) -> dict[str, list]:
    """Returns [size in bytes, SHA-256] of each file in a folder except the manifest, by path."""
    digest_of_path: dict[str, list] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digest_of_path[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    return digest_of_path


def sync_folder(folder: pathlib.Path) -> None:
    """Waits until a folder with all its contents is on disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the list of names of a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
