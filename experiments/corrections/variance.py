"""Measures the variance of each correction's batch gradient on enumerable problems."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from experiments.bias.cells import SAMPLING, Draws, draw_keys
from experiments.corrections.surrogates import by_surrogate
from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import Problem, response_logprobs, score_norms
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.bias.trajectory import lagged_trajectory
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import Array, PyTree


def variance_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """Yields one record per (correction, draw): the variance of a batch's gradient.

    Batches are sampled at the stale pair of policies (theta_{2S-1}, theta_{S-1}) of the synchronous
    trajectory. A batch has one group for every prompt. The field `relative_variance` is the trace
    of the covariance / ||H_sync||^2. It is estimated from `variance.num_batches` batches.
    """
    for surrogate, names in by_surrogate(config).items():
        group = _SampledGroup(
            problem=draws.problem,
            surrogate=surrogate,
            names=names,
            max_lag=config.max_lag,
            learning_rate=config.variance.s_eta / config.max_lag,
            num_prompts=config.num_prompts,
            num_batches=config.variance.num_batches,
        )
        over_draws = jax.jit(jax.vmap(group.relative_variance, in_axes=(0, 0, 0, None)))
        for index, name in enumerate(names):
            keys = draw_keys(config, SAMPLING)
            variances = np.asarray(over_draws(draws.levels, draws.params, keys, index))
            for draw, variance in enumerate(variances):
                yield {"correction": name, "draw": draw, "relative_variance": variance}


@dataclasses.dataclass(frozen=True, eq=False)
class _SampledGroup:
    """Computes the variances of the corrections that share one surrogate."""

    problem: Problem  # the methods replace its reward levels by those of a draw
    surrogate: SurrogateConfig
    names: list[str]  # the corrections
    max_lag: int  # S
    learning_rate: float  # eta of the synchronous trajectory
    num_prompts: int  # prompts of a batch
    num_batches: int  # batches sampled for each variance

    def relative_variance(
        self, level_NxY: Array, params: PyTree, key: jax.Array, index: Array
    ) -> jax.Array:
        """Returns the relative variance of one correction on one draw.

        It can be traced. The correction is its index in `names`, so that one compiled
        program serves all of them.
        """
        problem = dataclasses.replace(self.problem, level_NxY=level_NxY)
        theta, phi = self._stale_pair(problem, params)
        theta_D, unravel = ravel_pytree(theta)
        policy_logprobs_NxYxR, pull_back = jax.vjp(
            lambda x: response_logprobs(problem, unravel(x)), theta_D
        )
        behavior_logprobs_NxYxR = response_logprobs(problem, phi)
        norms_NxY = self._score_norms(problem, theta, index)

        def batch_gradient(batch_index: jax.Array) -> jax.Array:
            def cotangent(name: str) -> jax.Array:
                return sampled_cotangent(
                    problem,
                    policy_logprobs_NxYxR,
                    behavior_logprobs_NxYxR,
                    self.surrogate,
                    self.num_prompts,
                    jax.random.fold_in(key, batch_index),
                    registry.bind(name, self.surrogate, {}),
                    norms_NxY if registry.CORRECTIONS[name].optimal_baseline else None,
                )

            branches = [functools.partial(cotangent, name) for name in self.names]
            return pull_back(jax.lax.switch(index, branches))[0]

        # O: the sampled batches.
        gradients_OxD = jax.lax.map(batch_gradient, jnp.arange(self.num_batches), batch_size=100)
        sync_gradient_D = ravel_pytree(
            exact.surrogate_gradient(problem, theta, theta, self.surrogate)
        )[0]
        return jnp.sum(jnp.var(gradients_OxD, axis=0, ddof=1)) / jnp.sum(sync_gradient_D**2)

    def _score_norms(self, problem: Problem, theta: PyTree, index: Array) -> jax.Array | None:
        """Returns the `score_norms` of theta; 0 if the correction does not read them."""
        readers = [registry.CORRECTIONS[name].optimal_baseline for name in self.names]
        if not any(readers):
            return None
        shape = jax.eval_shape(score_norms, problem, theta)
        return jax.lax.cond(
            jnp.array(readers)[index],
            lambda: score_norms(problem, theta),
            lambda: jnp.zeros(shape.shape, shape.dtype),
        )

    def _stale_pair(self, problem: Problem, params: PyTree) -> tuple[PyTree, PyTree]:
        """Returns (theta_{2S-1}, theta_{S-1}) of the synchronous trajectory."""
        newest = self._version(problem, params, 2 * self.max_lag - 1)
        return newest, self._version(problem, params, self.max_lag - 1)

    def _version(self, problem: Problem, params: PyTree, t: int) -> PyTree:
        """Returns theta_t of the synchronous trajectory."""
        _, version = lagged_trajectory(
            problem,
            params,
            jnp.zeros(2 * self.max_lag, int),
            t + 1,
            self.learning_rate,
            jax.random.key(0),
            objective=self.surrogate,
            optimizer=optax.identity(),
            batch_prompts=0,
            max_lag=0,
        )
        return version
