"""Measures how far the parameters move, from whole copies of versions or from sketches of them."""

import functools
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from staleness_grpo.errors import require
from staleness_grpo.policy.numerics import at_least_float32
from staleness_grpo.training import vectors
from staleness_grpo.training.diagnostics import copied
from staleness_grpo.types import PyTree

COPIES_BYTES = 4 * 2**30  # versions that would take more are sketched, if the config leaves it open
CHOSEN_SKETCH = 256  # directions of such a sketch
SMALLEST_SKETCH = 16  # with fewer directions the error is a quarter of the distance or more


def check_drift(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if the sketch in `config.metrics` is too small, or has no effect."""
    size = fields["drift_sketch"]
    if not size:
        return
    hint = f"leave it unset, or give 0, or {SMALLEST_SKETCH} or more directions"
    require(size >= SMALLEST_SKETCH, "drift_sketch", hint, size)
    hint = "without metrics.parameter_drift no version is kept: leave it unset"
    require(fields["parameter_drift"], "drift_sketch", hint, size)


def sketch_size(asked: int | None, params: PyTree, max_lag: int) -> int | None:
    """Returns the number of directions of a sketch; None for whole copies.

    Args:
      asked: `metrics.drift_sketch`; 0: copies. Where it is unset, the bytes of S copies decide.
      params: the parameters, or their shapes and dtypes.
      max_lag: S.
    """
    if asked is not None:
        return asked or None
    return CHOSEN_SKETCH if copies_bytes(params, max_lag) > COPIES_BYTES else None


def copies_bytes(params: PyTree, max_lag: int) -> int:
    """Returns the bytes of S copies of the parameters, on all devices together."""
    leaves = jax.tree.leaves(params)
    return max_lag * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


@jax.jit
def distance(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the Euclidean norm of a - b."""
    return vectors.norm(optax.tree.sub(a, b))


@jax.jit
def _with_square(total: jax.Array, share: jax.Array, a: PyTree, b: PyTree) -> jax.Array:
    """Adds a share of the squared distance of a and b. One program does it for each lag."""
    return total + share * distance(a, b) ** 2


def sketch(tree: PyTree, size: int) -> PyTree:
    """Returns a small tree whose norm estimates that of `tree`.

    Each of a leaf's last two axes that is longer than `size` is multiplied with a random matrix of
    signs over sqrt(size), which keeps squared norms in expectation (Achlioptas, JCSS 2003). Shorter
    axes are kept, so small leaves lose nothing. The map is linear and always the same: norms of
    differences can be taken of sketches.

    Its relative error is `relative_error(size)`.
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), 2 * len(leaves))
    projected = []
    for i, leaf in enumerate(leaves):
        leaf = leaf.astype(at_least_float32(leaf.dtype))
        if leaf.ndim >= 1 and leaf.shape[-1] > size:
            leaf = leaf @ _directions(keys[2 * i], leaf.shape[-1], size, leaf.dtype)
        if leaf.ndim >= 2 and leaf.shape[-2] > size:
            directions = _directions(keys[2 * i + 1], leaf.shape[-2], size, leaf.dtype)
            leaf = jnp.swapaxes(jnp.swapaxes(leaf, -1, -2) @ directions, -1, -2)
        projected.append(leaf)
    return jax.tree.unflatten(structure, projected)


def _directions(key: jax.Array, length: int, size: int, dtype: Any) -> jax.Array:
    """Returns random signs over sqrt(size), [length, size]."""
    return jax.random.rademacher(key, (length, size), dtype) / math.sqrt(size)


def relative_error(size: int) -> float:
    """Returns a bound of the relative standard deviation of a sketch's squared norm.

    A projected axis has a relative variance of at most 2 / size, which a matrix of rank 1 attains.
    With two projected axes, it is at most (1 + 2 / size)^2 - 1. Half of the result is that of the
    norm. Errors of several leaves partly cancel, so that of all parameters is smaller.
    """
    return math.sqrt((1 + 2 / size) ** 2 - 1)


class ParameterDrift:
    """Measures how far the parameters are from the start and from the batch's behavior versions.

    Every version with rollouts in flight is kept: as a whole copy, or as a sketch of its distance
    from the start. There are up to S + 1 of them, and one copy of the start.

    Args:
      params: the parameters of the start.
      max_lag: S.
      sketch_size: directions of a sketch; None for whole copies.
    """

    def __init__(self, params: PyTree, max_lag: int, sketch_size: int | None = None):
        self._max_lag, self._size = max_lag, sketch_size
        self.start = copied(params)
        self.versions: dict[int, PyTree] = {}

    def remember(self, version: int, params: PyTree) -> None:
        """Keeps this version. The original is lost, because the update donates it."""
        self.versions[version] = self._encoded(params) if self._size else copied(params)

    def measure(self, step: int, params: PyTree, lag_N: np.ndarray) -> dict[str, jax.Array]:
        """Returns `drift_from_behavior` and `drift_from_start`, on the device.

        `drift_from_behavior` is the root mean square, over the groups of the batch, of the distance
        from the parameters to the version that generated the group. Versions that are too old for
        any later step are deleted.
        """
        lags, counts = np.unique(lag_N, return_counts=True)
        here = self._encoded(params) if self._size and lags[-1] > 0 else params
        square = jnp.zeros(())  # groups of lag 0 add 0
        for lag, share in zip(lags, counts / len(lag_N), strict=True):
            if lag > 0:
                square = _with_square(square, share, here, self.versions[step - lag])
        self.versions = {v: kept for v, kept in self.versions.items() if v > step - self._max_lag}
        return {
            "drift_from_behavior": jnp.sqrt(square),
            "drift_from_start": distance(params, self.start),
        }

    def described(self) -> PyTree:
        """Returns the shape, dtype and sharding of each leaf of a version."""
        kept = self.start
        if self._size:
            kept = jax.eval_shape(_encoder(self._size, self._replicated()), kept, kept)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding or self._replicated()
            ),
            kept,
        )

    def _encoded(self, params: PyTree) -> PyTree:
        """Returns the sketch of the distance from the start. It is small, so rounding is too."""
        return _encoder(self._size, self._replicated())(params, self.start)

    def _replicated(self) -> NamedSharding:
        return NamedSharding(jax.tree.leaves(self.start)[0].sharding.mesh, P())


def make_drift(config: ConfigDict, params: PyTree) -> ParameterDrift | None:
    """Makes the measurement that a run's config asks for, and says so if it chooses sketches."""
    if not config.metrics.parameter_drift:
        return None
    max_lag, asked = config.lag.max_lag, config.metrics.drift_sketch
    size = sketch_size(asked, params, max_lag)
    if size is not None and asked is None and jax.process_index() == 0:
        gigabytes = copies_bytes(params, max_lag) / 1e9
        print(
            f"drift is estimated from sketches of {size} directions, since {max_lag} copies of the "
            f"parameters take {gigabytes:.3g} GB: --config.metrics.drift_sketch=0 keeps copies",
            file=sys.stderr,
        )
    return ParameterDrift(params, max_lag, size)


@functools.lru_cache(maxsize=4)
def _encoder(size: int, sharding: NamedSharding) -> Any:
    """Returns jitted (params, start) -> sketch of their difference, which every device has."""
    return jax.jit(
        lambda params, start: sketch(optax.tree.sub(params, start), size), out_shardings=sharding
    )
