"""Makes a mesh of the devices, and shards parameters, optimizer state and batches over it.

The axes `data` and `fsdp` split the group slots of a batch. `fsdp` also splits every large
parameter. `tensor` splits heads, feed-forward features and the vocabulary.
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

# The last names of a parameter's path, and the mesh axis of each of its dimensions. The paths of
# optimizer moments have the same last names. A parameter without a rule (norms, counters) is small,
# and every device has it whole.
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
      ValueError: there are fewer devices than that.
    """
    devices = jax.devices() if devices is None else devices
    needed = data * fsdp * tensor
    if needed > len(devices):
        raise ValueError(f"the mesh needs {needed} devices, but there are {len(devices)}")
    return jax.make_mesh(
        (data, fsdp, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:needed],
    )


def parameter_spec(path: tuple, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Returns the partition of one leaf, which the last names of its path decide.

    A dimension that its mesh axis does not divide stays whole: 14 tokens over 4 devices.

    Raises:
      ValueError: the leaf has another number of dimensions than its rule.
    """
    names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    for suffix, spec in PARAMETER_RULES.items():
        if names[-len(suffix) :] == suffix:
            if len(spec) != len(shape):
                raise ValueError(
                    f"{'/'.join(names)} has {len(shape)} axes, its sharding rule has {len(spec)}: "
                    "change the rule in PARAMETER_RULES, or rename the parameter"
                )
            divided = [
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(spec, shape, strict=True)
            ]
            return P(*divided)
    return P()


def parameter_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns shardings of parameters, or of any state whose leaves end in parameter names.

    Leaves may be abstract.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path, leaf.shape, mesh)), tree
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every batch: its leading axis, of group slots, over BATCH_AXES."""
    return NamedSharding(mesh, BATCH_SPEC)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that gives every device a whole copy."""
    return NamedSharding(mesh, P())


def keep_split(x: Array) -> Array:
    """Constrains a traced array to stay split along its leading axis over `data` and `fsdp`.

    Without a mesh in use it is returned unchanged, and also if its length does not divide.

    Without the constraint the partitioner may split a product with weights over `fsdp` along the
    features that are summed over. Then every device has the activations of the whole batch, and
    adds them up with those of all others at every layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or batch_shards(mesh) == 1 or len(x) % batch_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH_SPEC)


def keep_parameters_split(tree: PyTree) -> PyTree:
    """Constrains traced parameters, or gradients, to stay split as `parameter_spec` says.

    Without a mesh in use they are returned unchanged.
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


@functools.cache  # needed at every step, and slow to compute
def row_owners(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the process [num_rows] that keeps each row of a batch, as a read-only array.

    Raises:
      ValueError: a row is split over processes, because the `tensor` axis goes across them.
    """
    owners = np.full(num_rows, -1)
    indices: Any = batch_sharding(mesh).devices_indices_map((num_rows,))
    for device, (rows, *_) in indices.items():
        if np.any((owners[rows] >= 0) & (owners[rows] != device.process_index)):
            raise ValueError(
                "the tensor axis of the mesh goes across processes: "
                "make it a divisor of the devices that each process has"
            )
        owners[rows] = device.process_index
    owners.flags.writeable = False
    return owners


@functools.cache
def own_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Returns the rows of a batch that this process keeps, in order, as a read-only array.

    A process that is alone keeps all rows.
    """
    rows = np.flatnonzero(row_owners(mesh, num_rows) == jax.process_index())
    rows.flags.writeable = False
    return rows


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Puts host arrays, which every process has as a whole, on the devices of all processes.

    Args:
      tree: the arrays.
      shardings: a tree of shardings like `tree`, or one sharding for all leaves.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put_leaf(leaf: Array, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: put_leaf(leaf, shardings), tree)
    return jax.tree.map(put_leaf, tree, shardings)


def put_own_rows(tree: PyTree, mesh: Mesh, num_rows: int) -> PyTree:
    """Puts a batch of `num_rows` on all devices, from the rows that each process keeps."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    place = np.full(num_rows, -1)
    rows = own_rows(mesh, num_rows)
    place[rows] = np.arange(len(rows))

    def put_leaf(leaf: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return leaf[place[index[0]]]

        return jax.make_array_from_callback((num_rows, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(put_leaf, tree)


def get_own_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Fetches the rows that this process keeps of a batch to its host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def get_leaf(leaf: jax.Array) -> np.ndarray:
        host = np.empty(leaf.shape, leaf.dtype)
        for shard in leaf.addressable_shards:
            host[shard.index] = shard.data
        return host[own_rows(mesh, len(leaf))]

    return jax.tree.map(get_leaf, tree)


def get_whole(leaf: Array) -> np.ndarray:
    """Fetches an array as a whole to the host of every process; all of them must call this."""
    elsewhere = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if elsewhere else leaf)


def sum_over_processes(values: np.ndarray) -> np.ndarray:
    """Returns the sum of every process's values, in float32 if there are several processes."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values.astype(np.float32)).sum(axis=0)
