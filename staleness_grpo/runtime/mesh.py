"""Makes a mesh of devices, and shards parameters, optimizer state and batches over the mesh.

The mesh has three axes:

  data: splits the group slots of a batch.
  fsdp: splits the group slots of a batch, and also every large parameter.
  tensor: splits attention heads, feed-forward features and the vocabulary.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from staleness_grpo.types import Array, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
BATCH_SPEC = P(BATCH_AXES)

# Last names of a parameter's path -> the mesh axis that splits each dimension of the parameter. The
# paths of optimizer moments end in the same names, so the rules apply to the moments too. A leaf
# without a rule (a norm or a counter) is small. Every device holds all of it.
PARAMETER_RULES = {
    ("embedding",): P("tensor", "fsdp"),  # [V, E]
    ("head",): P("fsdp", "tensor"),  # [E, V]
    ("query", "kernel"): P("fsdp", "tensor", None),  # [E, heads, H]
    ("key", "kernel"): P("fsdp", "tensor", None),
    ("value", "kernel"): P("fsdp", "tensor", None),
    ("query", "bias"): P("tensor", None),  # [heads, H]
    ("key", "bias"): P("tensor", None),
    ("value", "bias"): P("tensor", None),
    ("out", "kernel"): P("tensor", None, "fsdp"),  # [heads, H, E]
    ("gate", "kernel"): P("fsdp", "tensor"),  # [E, d_ff]
    ("up", "kernel"): P("fsdp", "tensor"),
    ("down", "kernel"): P("tensor", "fsdp"),  # [d_ff, E]
}


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Makes a mesh of the first data * fsdp * tensor of `devices`, by default of JAX's devices.

    Raises:
      ValueError: there are fewer than data * fsdp * tensor devices.
    """
    devices = jax.devices() if devices is None else devices
    num_needed = data * fsdp * tensor
    if num_needed > len(devices):
        raise ValueError(
            f"the mesh needs {num_needed} devices, but there are {len(devices)}: "
            "make data, fsdp or tensor smaller"
        )
    return jax.make_mesh(
        (data, fsdp, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:num_needed],
    )


def parameter_spec(path: tuple, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Returns the partition of one leaf, from the rule for the last names of its path.

    A dimension that cannot be split evenly is not split, such as 14 tokens over 4 devices.

    Raises:
      ValueError: the leaf and its rule have different numbers of dimensions.
    """
    names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    for suffix, spec in PARAMETER_RULES.items():
        if names[-len(suffix) :] == suffix:
            if len(spec) != len(shape):
                raise ValueError(
                    f"{'/'.join(names)} has {len(shape)} axes, its sharding rule has {len(spec)}: "
                    "change the rule in PARAMETER_RULES, or rename the parameter"
                )
            even_spec = [
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(spec, shape, strict=True)
            ]
            return P(*even_spec)
    return P()


def parameter_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns the shardings of parameters, or of any state whose paths end in parameter names.

    The leaves may be abstract arrays, which have only a shape and a dtype.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path, leaf.shape, mesh)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis (group slots) is split by BATCH_AXES."""
    return NamedSharding(mesh, BATCH_SPEC)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts into which a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def platform() -> str:
    """Returns the platform that a program is traced for: of the current mesh, or else JAX's own."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that gives every device a complete copy."""
    return NamedSharding(mesh, P())


def keep_split(x: Array) -> Array:
    """Constrains a traced array to stay split along its leading axis over `data` and `fsdp`.

    The array is returned unchanged if no mesh is in use, or if its length cannot be split evenly.

    Without the constraint, the partitioner of XLA may split a product with weights over `fsdp`
    along the features that are summed over. Then every device holds partial activations of the
    whole batch, and at every layer all devices must add up their partial activations.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or batch_shards(mesh) == 1 or len(x) % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH_SPEC)


def keep_parameters_split(tree: PyTree) -> PyTree:
    """Constrains traced parameters, or gradients, to the partition of `parameter_spec`.

    The tree is returned unchanged if no mesh is in use, or if the mesh has one device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, parameter_spec(path, leaf.shape, mesh)
        ),
        tree,
    )


@functools.cache  # called at every step, and slow to compute
def row_owners(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the index of the process that holds each row of a batch, [num_rows], read-only.

    Raises:
      ValueError: a row is split over several processes, because devices of one `tensor` group
        belong to different processes.
    """
    owners = np.full(num_rows, -1)
    indices: Any = batch_sharding(mesh).devices_indices_map((num_rows,))
    for device, (rows, *_) in indices.items():
        if np.any((owners[rows] >= 0) & (owners[rows] != device.process_index)):
            raise ValueError(
                "the tensor axis of the mesh spans several processes: "
                "give a divisor of the number of devices of each process as its size"
            )
        owners[rows] = device.process_index
    owners.flags.writeable = False
    return owners


@functools.cache
def own_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the indices of the batch rows that this process holds, ascending and read-only.

    With a single process, these are all rows.
    """
    rows = np.flatnonzero(row_owners(mesh, num_rows) == jax.process_index())
    rows.flags.writeable = False
    return rows


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts host arrays on the devices of all processes. Every process has the complete arrays.

    Args:
      tree: the arrays.
      shardings: a tree of shardings like `tree`, or one sharding for all leaves.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put_leaf(leaf: Array, sharding: NamedSharding) -> jax.Array:
        host_array = np.asarray(leaf)
        return jax.make_array_from_callback(
            host_array.shape, sharding, lambda index: host_array[index]
        )

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: put_leaf(leaf, shardings), tree)
    return jax.tree.map(put_leaf, tree, shardings)


def put_own_rows(tree: PyTree, mesh: Mesh, num_rows: int) -> PyTree:
    """Puts a batch of `num_rows` rows on all devices. `tree` has only the rows of this process."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    local_index = np.full(num_rows, -1)  # batch row -> row of the leaves of `tree`
    rows = own_rows(mesh, num_rows)
    local_index[rows] = np.arange(len(rows))

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return leaf[local_index[index[0]]]

        return jax.make_array_from_callback((num_rows, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(put_leaf, tree)


def get_own_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies the batch rows that this process holds from its devices to its host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def get_leaf(leaf: jax.Array) -> np.ndarray:
        host_array = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            host_array[shard.index] = shard.data
        return host_array[own_rows(mesh, len(leaf))]

    return jax.tree.map(get_leaf, tree)


def get_whole(leaf: Array) -> np.ndarray:
    """Copies a complete array to the host of every process. All processes must call this."""
    spans_processes = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(
        multihost_utils.process_allgather(leaf, tiled=True) if spans_processes else leaf
    )


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """Returns the sum of the values of all processes, in float32 if there are several processes."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values.astype(np.float32)).sum(axis=0)
