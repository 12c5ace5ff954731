"""Measures every correction on enumerable problems: exact bias and cosine, offset, and variance.

The reference is always H_sync = H(theta_t, theta_t) of plain GRPO. It has the length and
standard-deviation normalization that the correction is defined with. On the *synchronous* path the
parameters follow H_sync, and the correction is only measured. On its *own* path they follow the
correction's lagged gradient.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from experiments.bias.cells import SAMPLING, Draws, draw_keys
from staleness_grpo.bias import corrected, exact
from staleness_grpo.bias.enumeration import Problem, response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.bias.trajectory import lagged_trajectory
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import PyTree

PATHS = ("synchronous", "own")


def surrogate_of(name: str, surrogate: dict) -> SurrogateConfig:
    """Returns the surrogate's configuration, with what the correction's definition fixes."""
    correction = registry.CORRECTIONS[name]
    fixed = {
        field: getattr(correction, field) for field in ("length_normalization", "normalize_std")
    }
    return SurrogateConfig(
        **surrogate | {field: value for field, value in fixed.items() if value is not None}
    )


def by_surrogate(config: ConfigDict) -> dict[SurrogateConfig, list[str]]:
    """Groups the corrections that share a surrogate, and so a compiled program."""
    groups: dict[SurrogateConfig, list[str]] = {}
    for name in config.corrections:
        groups.setdefault(surrogate_of(name, config.surrogate.to_dict()), []).append(name)
    return groups


def learning_rates(config: ConfigDict) -> np.ndarray:
    """Returns eta of each S * eta."""
    return np.array(config.s_eta) / config.max_lag


def bias_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """Yields one record for each correction with exact coefficients, path, draw and learning rate.

    Norms are root mean squares over the S steps that follow the first S. `relative_bias` is the
    ratio of the norms of bias and H_sync. `cosine` is the mean cosine with H_sync, and
    `clip_fraction` the mean of GRPO's own clip. `offset` is the relative distance from H_sync at
    lag 0, where the path starts.
    """
    lag = config.max_lag
    lags_I = jnp.minimum(jnp.arange(2 * lag), lag)
    for objective, names in by_surrogate(config).items():
        names = [name for name in names if not registry.CORRECTIONS[name].reads_advantage_size]
        if not names:
            continue

        def coefficients_of(problem, index, names=names, objective=objective):
            return corrected.one_of(
                [corrected.coefficients(problem, objective, name, {}) for name in names], index
            )

        def trajectory(
            level_NxY,
            params,
            learning_rate,
            index,
            synchronous,
            coefficients_of=coefficients_of,
            objective=objective,
        ):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            records, _ = lagged_trajectory(
                problem,
                params,
                lags_I,
                np.asarray(len(lags_I)),
                learning_rate,
                jax.random.key(0),
                objective=objective,
                optimizer=optax.identity(),
                batch_prompts=0,
                max_lag=lag,
                coefficients=coefficients_of(problem, index),
                synchronous=synchronous,
            )
            return records

        def offset(level_NxY, params, index, coefficients_of=coefficients_of, objective=objective):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            fresh_D = ravel_pytree(exact.surrogate_gradient(problem, params, params, objective))[0]
            coefficients = coefficients_of(problem, index)
            own_D = ravel_pytree(
                exact.corrected_gradient(problem, params, params, objective, coefficients)
            )[0]
            return jnp.linalg.norm(own_D - fresh_D) / jnp.linalg.norm(fresh_D)

        over_rates = jax.vmap(trajectory, in_axes=(None, None, 0, None, None))
        run = jax.jit(jax.vmap(over_rates, in_axes=(0, 0, None, None, None)))
        offsets = jax.jit(jax.vmap(offset, in_axes=(0, 0, None)))
        for index, name in enumerate(names):
            offset_of_draw = np.asarray(offsets(draws.levels, draws.params, index))
            for path in PATHS:
                by_step = run(
                    draws.levels, draws.params, learning_rates(config), index, path == "synchronous"
                )
                late = {key: np.asarray(values)[..., lag:] for key, values in by_step.items()}
                rms = {key: np.sqrt(np.mean(values**2, axis=-1)) for key, values in late.items()}
                for draw, i in np.ndindex(rms["bias"].shape):
                    yield {
                        "correction": name,
                        "path": path,
                        "draw": draw,
                        "s_eta": config.s_eta[i],
                        "relative_bias": rms["bias"][draw, i] / rms["gradient"][draw, i],
                        "cosine": late["cosine"][draw, i].mean(),
                        "displacement": rms["displacement"][draw, i],
                        "clip_fraction": late["clip_fraction"][draw, i].mean(),
                        "offset": offset_of_draw[draw],
                    }


def variance_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """Yields one record for each correction and draw: the variance of a batch's gradient.

    It is taken at a stale pair of policies, (theta_{2S-1}, theta_{S-1}) of the synchronous path. A
    batch has one group for every prompt. `relative_variance` is the trace of the covariance over
    ||H_sync||^2, from `variance.num_batches` samples.
    """
    lag, eta = config.max_lag, config.variance.s_eta / config.max_lag
    for objective, names in by_surrogate(config).items():
        bound = [registry.bind(name, objective, {}) for name in names]

        def pair(
            problem: Problem, params: PyTree, objective: SurrogateConfig = objective
        ) -> tuple[PyTree, PyTree]:
            def version(t):
                return lagged_trajectory(
                    problem,
                    params,
                    jnp.zeros(2 * lag, int),
                    t + 1,
                    eta,
                    jax.random.key(0),
                    objective=objective,
                    optimizer=optax.identity(),
                    batch_prompts=0,
                    max_lag=0,
                )[1]

            return version(2 * lag - 1), version(lag - 1)

        def variance(level_NxY, params, key, index, objective=objective, bound=bound, pair=pair):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            theta, phi = pair(problem, params)
            theta_D, unravel = ravel_pytree(theta)
            policy_logprobs_NxYxR, pull_back = jax.vjp(
                lambda x: response_logprobs(problem, unravel(x)), theta_D
            )
            behavior_logprobs_NxYxR = response_logprobs(problem, phi)

            def gradient(number):
                def with_objective(token_objective):
                    return lambda: sampled_cotangent(
                        problem,
                        policy_logprobs_NxYxR,
                        behavior_logprobs_NxYxR,
                        objective,
                        config.num_prompts,
                        jax.random.fold_in(key, number),
                        token_objective,
                    )

                branches = [with_objective(token_objective) for token_objective in bound]
                return pull_back(jax.lax.switch(index, branches))[0]

            # O: the sampled batches.
            gradients_OxD = jax.lax.map(
                gradient, jnp.arange(config.variance.num_batches), batch_size=100
            )
            fresh_D = ravel_pytree(exact.surrogate_gradient(problem, theta, theta, objective))[0]
            return jnp.sum(jnp.var(gradients_OxD, axis=0, ddof=1)) / jnp.sum(fresh_D**2)

        run = jax.jit(jax.vmap(variance, in_axes=(0, 0, 0, None)))
        for index, name in enumerate(names):
            keys = draw_keys(config, SAMPLING)
            variances = np.asarray(run(draws.levels, draws.params, keys, index))
            for draw, value in enumerate(variances):
                yield {"correction": name, "draw": draw, "relative_variance": value}
