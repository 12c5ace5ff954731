"""Reads and writes the files of one checkpoint: arrays by path, unread groups, digests."""

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
    """A checkpoint cannot be used: it is damaged, or of another config, format or code."""


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by path, in their order.

    Orbax gets a flat dict, whatever the optimizer's state is made of.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def stacked(arrays: dict[str, PyTree]) -> dict[str, PyTree]:
    """Joins the drift versions into one tree with a leading axis for the version.

    Orbax takes its time for each array, however small.
    """
    if "drift_versions" not in arrays:
        return arrays
    return arrays | {"drift_versions": jax.tree.map(_stack, *arrays["drift_versions"])}


def _stack(*leaves: jax.Array) -> jax.Array:
    """Stacks arrays of one sharding on the host, where no new number of them is compiled."""
    described = stacked_leaf(leaves[0], len(leaves))
    shards = zip(*(leaf.addressable_shards for leaf in leaves), strict=True)
    parts = [
        jax.device_put(np.stack([shard.data for shard in same]), same[0].device) for same in shards
    ]
    return jax.make_array_from_single_device_arrays(described.shape, described.sharding, parts)


def stacked_leaf(leaf: Any, count: int) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of `count` versions of a parameter, stacked."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    sharding = NamedSharding(mesh, P(None, *spec))
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=sharding)


def unstacked(versions: PyTree, params: PyTree) -> list[PyTree]:
    """Returns the trees that `stacked` joined, each sharded like `params`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    take = jax.jit(
        lambda versions, number: jax.tree.map(lambda leaf: leaf[number], versions),
        out_shardings=shardings,
    )
    return [take(versions, number) for number in range(len(jax.tree.leaves(versions)[0]))]


# The structure of the groups in buffer_*.npz. Proximal log-probabilities are computed when a group
# is read, so they are not there.
_ROLLOUT = Rollout(
    prompts=Prompts(0, 0, 0),  # type: ignore[arg-type]  # the leaves only give the names
    responses=Responses(0, 0, 0),  # type: ignore[arg-type]  # likewise
    rewards_NxG=0,  # type: ignore[arg-type]  # likewise
    behavior_version_N=0,  # type: ignore[arg-type]  # likewise
)


def write_groups(path: pathlib.Path, groups: Groups) -> None:
    """Writes unread groups as named arrays [W, ...]."""
    # The names on disk are those of format 2.
    flat = {"steps_K": groups.steps_W, "slots_K": groups.slots_W, "versions_K": groups.versions_W}
    np.savez(path, **flat | by_path(groups.rollout))


def read_groups(path: pathlib.Path) -> Groups:
    """Reads what `write_groups` wrote. Raises CheckpointError."""
    try:
        with np.load(path) as stored:
            saved = dict(stored)
        places = saved["steps_K"], saved["slots_K"], saved["versions_K"]
        if not places[0].size:
            return Groups(*places, rollout=None)
        judged_elsewhere = ".reward_outcome_NxG" in saved
        outcome = dict(reward_outcome_NxG=0) if judged_elsewhere else {}
        template = dataclasses.replace(_ROLLOUT, **outcome)  # type: ignore[arg-type]  # names alone
        leaves = [saved[name] for name in by_path(template)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    rollout = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return Groups(*places, rollout=rollout)


def digests(folder: pathlib.Path) -> dict[str, list]:
    """Returns [bytes, SHA-256] of every file below a folder but the manifest, by relative path."""
    found: dict[str, list] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    return found


def sync_folder(folder: pathlib.Path) -> None:
    """Returns once everything below a folder is on the disk itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: pathlib.Path) -> None:
    """Returns once a file or a folder's list of names is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
