"""Every correction on enumerable problems: exact bias and cosine on two paths, its offset at lag 0, its variance.

The reference is always H_sync = H(theta_t, theta_t) of plain GRPO with the length and standard-deviation
normalization that the correction is defined with. On the *synchronous* path the parameters follow H_sync and the
correction is only measured; on its *own* path they follow the correction's lagged gradient.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from experiments.bias_cells import SAMPLING, Draws, draw_keys
from staleness_grpo.bias import corrected, exact
from staleness_grpo.bias.enumeration import Problem, response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent
from staleness_grpo.bias.trajectory import lagged_trajectory
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import PyTree

PATHS = ("synchronous", "own")


def surrogate_of(name: str, surrogate: dict) -> SurrogateConfig:
    """The surrogate's configuration, with what the correction's definition fixes."""
    correction = registry.CORRECTIONS[name]
    fixed = {field: getattr(correction, field) for field in ("length_normalization", "normalize_std")}
    return SurrogateConfig(**surrogate | {field: value for field, value in fixed.items() if value is not None})


def by_surrogate(config: ConfigDict) -> dict[SurrogateConfig, list[str]]:
    """The corrections that share a surrogate, and so a compiled program."""
    groups: dict[SurrogateConfig, list[str]] = {}
    for name in config.corrections:
        groups.setdefault(surrogate_of(name, config.surrogate.to_dict()), []).append(name)
    return groups


def learning_rates(config: ConfigDict) -> np.ndarray:
    """eta of each S * eta."""
    return np.array(config.s_eta) / config.max_lag


def bias_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """One record for each correction with exact coefficients, path, draw and learning rate.

    Norms are root mean squares over one lag's steps after the first S; `relative_bias` is their ratio and `cosine`
    the mean. `offset` is the relative distance from H_sync at lag 0, where the path starts.
    """
    lag = config.max_lag
    lags_K = jnp.minimum(jnp.arange(2 * lag), lag)
    for objective, names in by_surrogate(config).items():
        names = [name for name in names if not registry.CORRECTIONS[name].reads_advantage_size]
        if not names:
            continue

        def chosen(problem, index, names=names, objective=objective):
            return corrected.one_of([corrected.coefficients(problem, objective, name, {}) for name in names], index)

        def trajectory(level_NxY, params, learning_rate, index, synchronous, chosen=chosen, objective=objective):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            records, _ = lagged_trajectory(
                problem, params, lags_K, len(lags_K), learning_rate, jax.random.key(0), objective=objective,
                optimizer=optax.identity(), batch_prompts=0, max_lag=lag, coefficients=chosen(problem, index),
                synchronous=synchronous,
            )  # fmt: skip
            return records

        def offset(level_NxY, params, index, chosen=chosen, objective=objective):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            fresh = ravel_pytree(exact.surrogate_gradient(problem, params, params, objective))[0]
            coefficients = chosen(problem, index)
            own = ravel_pytree(exact.corrected_gradient(problem, params, params, objective, coefficients))[0]
            return jnp.linalg.norm(own - fresh) / jnp.linalg.norm(fresh)

        over_rates = jax.vmap(trajectory, in_axes=(None, None, 0, None, None))
        run = jax.jit(jax.vmap(over_rates, in_axes=(0, 0, None, None, None)))
        offsets = jax.jit(jax.vmap(offset, in_axes=(0, 0, None)))
        for index, name in enumerate(names):
            offset_D = np.asarray(offsets(draws.levels, draws.params, index))
            for path in PATHS:
                found = run(draws.levels, draws.params, learning_rates(config), index, path == "synchronous")
                found = {key: np.asarray(values)[..., lag:] for key, values in found.items()}
                rms = {key: np.sqrt(np.mean(values**2, axis=-1)) for key, values in found.items()}
                for draw, i in np.ndindex(rms["bias"].shape):
                    yield {
                        "correction": name,
                        "path": path,
                        "draw": draw,
                        "s_eta": config.s_eta[i],
                        "relative_bias": rms["bias"][draw, i] / rms["gradient"][draw, i],
                        "cosine": found["cosine"][draw, i].mean(),
                        "displacement": rms["displacement"][draw, i],
                        "clip_fraction": found["clip_fraction"][draw, i].mean(),  # that of GRPO's clip
                        "offset": offset_D[draw],
                    }


def variance_records(config: ConfigDict, draws: Draws) -> Iterator[dict]:
    """One record for each correction and draw: variance of a batch's gradient at a stale pair of policies.

    The pair is (theta_{2S-1}, theta_{S-1}) of the synchronous path. A batch has one group for every prompt.
    `relative_variance` is the trace of the covariance over ||H_sync||^2, from `variance.num_batches` samples.
    """
    lag, eta = config.max_lag, config.variance.s_eta / config.max_lag
    for objective, names in by_surrogate(config).items():
        bound = [registry.bind(name, objective, {}) for name in names]

        def pair(problem: Problem, params: PyTree, objective=objective) -> tuple[PyTree, PyTree]:
            def version(t):
                return lagged_trajectory(
                    problem, params, jnp.zeros(2 * lag, int), t + 1, eta, jax.random.key(0), objective=objective,
                    optimizer=optax.identity(), batch_prompts=0, max_lag=0,
                )[1]  # fmt: skip

            return version(2 * lag - 1), version(lag - 1)

        def variance(level_NxY, params, key, index, objective=objective, bound=bound, pair=pair):
            problem = dataclasses.replace(draws.problem, level_NxY=level_NxY)
            theta, phi = pair(problem, params)
            theta_D, unravel = ravel_pytree(theta)
            policy_logprobs, pull_back = jax.vjp(lambda x: response_logprobs(problem, unravel(x)), theta_D)
            behavior_logprobs = response_logprobs(problem, phi)

            def gradient(number):
                def with_objective(token_objective):
                    return lambda: sampled_cotangent(
                        problem, policy_logprobs, behavior_logprobs, objective, config.num_prompts,
                        jax.random.fold_in(key, number), token_objective,
                    )  # fmt: skip

                cotangent = jax.lax.switch(index, [with_objective(objective_) for objective_ in bound])
                return pull_back(cotangent)[0]

            gradients = jax.lax.map(gradient, jnp.arange(config.variance.num_batches), batch_size=100)
            fresh = ravel_pytree(exact.surrogate_gradient(problem, theta, theta, objective))[0]
            return jnp.sum(jnp.var(gradients, axis=0, ddof=1)) / jnp.sum(fresh**2)

        run = jax.jit(jax.vmap(variance, in_axes=(0, 0, 0, None)))
        for index, name in enumerate(names):
            found = np.asarray(run(draws.levels, draws.params, draw_keys(config, SAMPLING), index))
            for draw, value in enumerate(found):
                yield {"correction": name, "draw": draw, "relative_variance": value}
