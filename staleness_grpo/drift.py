"""How far the parameters have moved: from the start, and from the versions that generated the batch."""

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo import learner


class ParameterDrift:
    """Distances of the parameters from the start and from the versions that generated the batch.

    Keeps a copy of every version whose rollouts are still in flight: up to S + 1 copies of the parameters.
    """

    def __init__(self, params, max_lag: int):
        self._max_lag = max_lag
        self._copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
        self._distance = jax.jit(learner.distance)
        self.start = self._copy(params)
        self.versions = {}

    def remember(self, version: int, params) -> None:
        """Keeps this version; `params` themselves will be donated to the update."""
        self.versions[version] = self._copy(params)

    def measure(self, step: int, params, lag_N: np.ndarray) -> dict:
        """`drift_from_behavior`, root mean square over the groups, and `drift_from_start`, on the device."""
        lags, counts = np.unique(lag_N, return_counts=True)
        square = jnp.zeros(())  # a group of lag 0 is at distance 0
        for lag, count in zip(lags, counts, strict=True):
            if lag > 0:
                square += count / len(lag_N) * self._distance(params, self.versions[step - lag]) ** 2
        self.versions = {v: kept for v, kept in self.versions.items() if v > step - self._max_lag}
        return {"drift_from_behavior": jnp.sqrt(square), "drift_from_start": self._distance(params, self.start)}
