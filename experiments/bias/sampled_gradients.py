"""Compares sampled gradients, made by the code that trains, with the exact ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bias.cells import SAMPLING, Draws, draw_keys
from experiments.bias.identities import flat, stale_step
from staleness_grpo.bias import exact
from staleness_grpo.bias.enumeration import response_logprobs
from staleness_grpo.bias.sampling import sampled_cotangent

BLOCK_SIZE = 100  # sampled batches that the device averages before it returns them
BLOCKS_PER_CHUNK = 10  # blocks that are computed at the same time
AVERAGED_BLOCKS = (1, 3, 9, 27)  # numbers of blocks at which the error of the mean is measured
NUM_BISECTIONS = 30  # narrows a bracket of relative width 0.1 to 1e-10
NUM_PROBES = 16  # random vectors that estimate a Frobenius norm


def sampled_deviation(draws: Draws, s_eta: float) -> dict[str, dict[str, float]]:
    """Compares the mean of sampled gradients with the exact H, in draw 0.

    Returns:
      The statistics for 'fresh' (phi equals theta) and for 'stale' (theta is one step away from
      phi):

      - 'max_z': the largest deviation of a component, in standard errors of this component.
      - 'slope': the slope of the log root mean square error against the log number of averaged
        batches.
      - 'num_batches' and 'num_components'.
    """
    settings = draws.config.sampled
    num_chunks = settings.num_batches // (BLOCK_SIZE * BLOCKS_PER_CHUNK)
    problem = dataclasses.replace(draws.problem, level_NxY=draws.levels[0])
    params = jax.tree.map(lambda x: x[0], draws.params)
    coefficients = exact.clip_coefficients(draws.objective)

    @jax.jit
    def deviations(step: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the deviation of each block's mean gradient from the exact H, [blocks, D]."""
        theta, phi = stale_step(problem, params, draws.objective, step)
        policy_logprobs, pull_back = jax.vjp(lambda p: response_logprobs(problem, p), theta)
        behavior_logprobs = response_logprobs(problem, phi)

        def sample(key: jax.Array) -> jax.Array:
            return sampled_cotangent(
                problem,
                policy_logprobs,
                behavior_logprobs,
                draws.objective,
                settings.batch_prompts,
                key,
            )

        def chunk(index: jax.Array) -> jax.Array:
            keys = jax.random.split(jax.random.fold_in(key, index), BLOCKS_PER_CHUNK * BLOCK_SIZE)
            cotangents = jax.vmap(sample)(keys)
            return jnp.mean(
                cotangents.reshape(BLOCKS_PER_CHUNK, BLOCK_SIZE, *cotangents.shape[1:]), axis=1
            )

        blocks = jax.lax.map(chunk, jnp.arange(num_chunks)).reshape(-1, *policy_logprobs.shape)
        expected = exact.logprob_cotangent(
            problem, policy_logprobs, behavior_logprobs, draws.objective, coefficients
        )
        return jax.vmap(lambda cotangent: flat(pull_back(cotangent - expected)[0]))(blocks)

    key = draw_keys(draws.config, SAMPLING)[0]
    return {
        name: deviation_statistics(np.asarray(deviations(step, key)))
        for name, step in (("fresh", 0.0), ("stale", s_eta))
    }


def deviation_statistics(deviations: np.ndarray) -> dict[str, float]:
    """Computes the statistics of `sampled_deviation` from the deviations [blocks, D]."""
    standard_error = deviations.std(axis=0, ddof=1) / np.sqrt(len(deviations))
    # The other components are exactly 0 except for rounding errors.
    is_random = standard_error > 1e-15
    rms = []
    for num_blocks in AVERAGED_BLOCKS:
        num_used = len(deviations) // num_blocks * num_blocks
        means = deviations[:num_used].reshape(-1, num_blocks, deviations.shape[1]).mean(axis=1)
        rms.append(np.sqrt(np.mean(np.sum(means**2, axis=1))))
    return {
        "max_z": float(
            np.max(np.abs(deviations.mean(axis=0)[is_random]) / standard_error[is_random])
        ),
        "slope": float(np.polyfit(np.log(AVERAGED_BLOCKS), np.log(rms), 1)[0]),
        "num_batches": len(deviations) * BLOCK_SIZE,
        "num_components": int(is_random.sum()),
    }
