"""Devices to a mesh, and the sharding of parameters, optimizer state and batches over it.

Axes: `data` and `fsdp` split the batch's group slots; `fsdp` also splits every large parameter, `tensor` splits
heads, feed-forward features and the vocabulary.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from staleness_grpo.types import Array, PyTree

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Last names of a parameter's path -> its axes. Optimizer moments end in the same names, so they follow suit.
# What is not listed (norms, counters) is small and stays whole on every device.
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
    ("gate", "kernel"): P("fsdp", "tensor"),  # [E, F]
    ("up", "kernel"): P("fsdp", "tensor"),
    ("down", "kernel"): P("tensor", "fsdp"),  # [F, E]
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh over the first data * fsdp * tensor of `devices`, by default of all that there are.

    Raises:
      ValueError: if there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else devices
    needed = data * fsdp * tensor
    if needed > len(devices):
        raise ValueError(f"the mesh needs {needed} devices, but there are {len(devices)}")
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])


def parameter_spec(path: tuple, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The partition of one leaf by the names at the end of its path.

    A dimension that its mesh axis does not divide stays whole (a 14-token vocabulary over 4 devices).
    """
    names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    for suffix, spec in PARAMETER_RULES.items():
        if names[-len(suffix) :] == suffix:
            if len(spec) != len(shape):
                raise ValueError(f"{'/'.join(names)} has {len(shape)} axes where its sharding rule has {len(spec)}")
            return P(*(a if a and size % mesh.shape[a] == 0 else None for a, size in zip(spec, shape, strict=True)))
    return P()


def parameter_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of parameters, or of any state whose leaves end in parameter names; leaves may be abstract."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path, leaf.shape, mesh)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Group slots, the leading axis of every batch, split over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def keep_split(x: Array) -> Array:
    """x, traced, with its leading axis of group slots over `data` and `fsdp` of the mesh in use; as it is without one.

    Left to itself the partitioner may split a product with weights over `fsdp` along the features that are summed over:
    every device then has the activations of the whole batch, and adds them up with all others' at every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or batch_shards(mesh) == 1 or len(x) % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def keep_parameters_split(tree: PyTree) -> PyTree:
    """Traced parameters, or gradients, in parts as `parameter_spec` has them, by the mesh in use; as is without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(leaf, parameter_spec(path, leaf.shape, mesh)), tree
    )


@functools.cache  # asked for at every step, and slow to tell
def row_owners(mesh: Mesh, num_rows: int) -> np.ndarray:
    """The process [num_rows] that keeps each row of a batch; not to be written to.

    Raises:
      ValueError: if a row is split over processes, which a `tensor` axis across them would do.
    """
    owners = np.full(num_rows, -1)
    for device, (rows, *_) in batch_sharding(mesh).devices_indices_map((num_rows,)).items():
        if np.any((owners[rows] >= 0) & (owners[rows] != device.process_index)):
            raise ValueError("the tensor axis of the mesh goes across processes: give a divisor of a process's devices")
        owners[rows] = device.process_index
    owners.flags.writeable = False
    return owners


@functools.cache
def own_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """The rows that this process keeps of a batch, in order, all of them if it is alone; not to be written to."""
    rows = np.flatnonzero(row_owners(mesh, num_rows) == jax.process_index())
    rows.flags.writeable = False
    return rows


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Host arrays that every process has as a whole, on the devices of all."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(leaf, sharding):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: one(leaf, shardings), tree)
    return jax.tree.map(one, tree, shardings)


def put_own_rows(tree: PyTree, mesh: Mesh, num_rows: int) -> PyTree:
    """A batch of `num_rows` on the devices of all processes, from the rows that each of them keeps."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    place = np.full(num_rows, -1)
    rows = own_rows(mesh, num_rows)
    place[rows] = np.arange(len(rows))

    def one(leaf):
        shape = (num_rows, *leaf.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda index: leaf[place[index[0]]])

    return jax.tree.map(one, tree)


def get_own_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """The rows of a batch on the devices that this process keeps, on the host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def one(leaf):
        found = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            found[shard.index] = shard.data
        return found[own_rows(mesh, len(leaf))]

    return jax.tree.map(one, tree)


def get_whole(leaf: Array) -> np.ndarray:
    """An array on the host of every process; all of them must ask for it."""
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if elsewhere else leaf)


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """The sum of every process's values, in float32 if there are several."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values.astype(np.float32)).sum(axis=0)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """How many parts the batch is split into."""
    return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
