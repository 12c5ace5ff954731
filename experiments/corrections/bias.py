"""Measures the exact bias of each correction on enumerable problems.

The reference is the synchronous gradient H_sync = H(theta_t, theta_t) of plain GRPO. It has the
length and standard-deviation normalization that the correction is defined with.

Each correction is measured on two trajectories:

- "synchronous": the parameters follow H_sync, and the correction is only measured.
- "own": the parameters follow the correction's lagged gradient.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from experiments.bias.cells import Draws
from experiments.corrections.surrogates import by_surrogate
from staleness_grpo.bias import corrected, exact
from staleness_grpo.bias.enumeration import Problem
from staleness_grpo.bias.trajectory import lagged_trajectory
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import Array, PyTree

TRAJECTORIES = ("synchronous", "own")


def bias_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """Yields one record per (correction, trajectory, draw, eta).

    Only corrections with exact coefficients are included. Norms are root mean squares over S
    learner steps, after the first S steps. Fields of a record:

    - `path`: the trajectory.
    - `relative_bias`: norm of the bias / norm of H_sync.
    - `cosine`: mean cosine of the correction's gradient with H_sync.
    - `displacement`: norm of theta_t - phi, where phi is the behavior policy.
    - `clip_fraction`: mean share of tokens that GRPO's own clip cuts.
    - `offset`: relative distance of the correction's gradient from H_sync at lag 0, at the initial
      policy. It does not depend on trajectory and eta.
    """
    lag = config.max_lag
    lags_I = jnp.minimum(jnp.arange(2 * lag), lag)
    for surrogate, all_names in by_surrogate(config).items():
        names = [name for name in all_names if registry.CORRECTIONS[name].has_exact_coefficients]
        if not names:
            continue
        group = _ExactGroup(draws.problem, surrogate, names, lags_I, lag)
        over_rates = jax.vmap(group.trajectory, in_axes=(None, None, 0, None, None))
        trajectories = jax.jit(jax.vmap(over_rates, in_axes=(0, 0, None, None, None)))
        offsets = jax.jit(jax.vmap(group.offset, in_axes=(0, 0, None)))
        for index, name in enumerate(names):
            offset_of_draw = np.asarray(offsets(draws.levels, draws.params, index))
            for trajectory in TRAJECTORIES:
                by_step = trajectories(
                    draws.levels,
                    draws.params,
                    learning_rates(config),
                    index,
                    trajectory == "synchronous",
                )
                late = {key: np.asarray(values)[..., lag:] for key, values in by_step.items()}
                rms = {key: np.sqrt(np.mean(values**2, axis=-1)) for key, values in late.items()}
                for draw, i in np.ndindex(rms["bias"].shape):
                    yield {
                        "correction": name,
                        "path": trajectory,
                        "draw": draw,
                        "s_eta": config.s_eta[i],
                        "relative_bias": rms["bias"][draw, i] / rms["gradient"][draw, i],
                        "cosine": late["cosine"][draw, i].mean(),
                        "displacement": rms["displacement"][draw, i],
                        "clip_fraction": late["clip_fraction"][draw, i].mean(),
                        "offset": offset_of_draw[draw],
                    }


def learning_rates(config: ConfigDict) -> np.ndarray:
    """Returns eta for each S * eta in `config.s_eta`."""
    return np.array(config.s_eta) / config.max_lag


@dataclasses.dataclass(frozen=True, eq=False)
class _ExactGroup:
    """Computes exact gradients of the corrections that share one surrogate.

    The methods can be traced. They take a correction as its index in `names`, so that one compiled
    program serves all of them.
    """

    problem: Problem  # the methods replace its reward levels by those of a draw
    surrogate: SurrogateConfig
    names: list[str]
    lags_I: jax.Array  # int, the lag of each learner step
    max_lag: int

    def trajectory(
        self,
        level_NxY: Array,
        params: PyTree,
        learning_rate: Array,
        index: Array,
        synchronous: Array,
    ) -> dict[str, jax.Array]:
        """Runs one trajectory; returns the quantities of `lagged_trajectory`, [I] each."""
        problem = dataclasses.replace(self.problem, level_NxY=level_NxY)
        records, _ = lagged_trajectory(
            problem,
            params,
            self.lags_I,
            np.asarray(len(self.lags_I)),
            learning_rate,
            jax.random.key(0),
            objective=self.surrogate,
            optimizer=optax.identity(),
            batch_prompts=0,
            max_lag=self.max_lag,
            coefficients=self._coefficients(problem, index),
            synchronous=synchronous,
        )
        return records

    def offset(self, level_NxY: Array, params: PyTree, index: Array) -> jax.Array:
        """Returns the relative distance of a correction's gradient from H_sync at lag 0."""
        problem = dataclasses.replace(self.problem, level_NxY=level_NxY)
        sync_gradient_D = ravel_pytree(
            exact.surrogate_gradient(problem, params, params, self.surrogate)
        )[0]
        coefficients = self._coefficients(problem, index)
        own_gradient_D = ravel_pytree(
            exact.corrected_gradient(problem, params, params, self.surrogate, coefficients)
        )[0]
        difference_D = own_gradient_D - sync_gradient_D
        return jnp.linalg.norm(difference_D) / jnp.linalg.norm(sync_gradient_D)

    def _coefficients(self, problem: Problem, index: Array) -> exact.Coefficients:
        choices = [corrected.coefficients(problem, self.surrogate, name, {}) for name in self.names]
        return corrected.one_of(choices, index)
