"""Computes a response's expected advantage exactly, given random other members of its group."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import Array


def level_counts(total: int, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists every way to distribute `total` responses over M reward levels.

    Returns:
      (counts [Z, M], multinomial coefficients [Z]), int and float64. Each row of counts is the
      number of responses on each level.
    """
    lower_levels = itertools.product(range(total + 1), repeat=num_levels - 1)
    counts_ZxM = np.array([(*k, total - sum(k)) for k in lower_levels if sum(k) <= total])
    coefficients = [
        math.factorial(total) // math.prod(map(math.factorial, k)) for k in counts_ZxM.tolist()
    ]
    return counts_ZxM, np.array(coefficients, dtype=np.float64)


def advantage_table(
    levels_M: Array, others_ZxM: np.ndarray, objective: SurrogateConfig
) -> jax.Array:
    """Returns the advantage [M, Z] of a response at each level, for each composition of the others.

    `others_ZxM` counts the other responses of the group on each level.
    """
    num_levels = others_ZxM.shape[-1]
    counts_MxZxM = others_ZxM[None] + np.eye(num_levels, dtype=int)[:, None]
    group_size = counts_MxZxM[0, 0].sum()
    mean_MxZ = counts_MxZxM @ levels_M / group_size
    centered_MxZ = levels_M[:, None] - mean_MxZ
    if objective.normalize_std:
        deviations = levels_M[None, None] - mean_MxZ[..., None]
        std_MxZ = jnp.sqrt(jnp.sum(counts_MxZxM * deviations**2, axis=-1) / group_size)
        centered_MxZ = centered_MxZ / (std_MxZ + objective.std_epsilon)
    # Equal rewards must give exactly 0, but mean and standard deviation have rounding errors.
    all_equal_MxZ = np.max(counts_MxZxM, axis=-1) == group_size
    return jnp.where(all_equal_MxZ, 0.0, centered_MxZ)


def expected_advantages(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array]:
    """Returns E[max(A, 0) | level] and E[max(-A, 0) | level], both [N, M].

    The level counts of the other G - 1 responses are Multinomial(G - 1, level_probs). The positive
    and the negative part are separate because the clip depends on the sign of A. The sign of a
    middle level's advantage varies from group to group.
    """
    probs_NxZ, advantages_MxZ = others_and_advantages(
        level_probs_NxM, levels_M, group_size, objective
    )
    positive = jnp.einsum("nz,mz->nm", probs_NxZ, jnp.maximum(advantages_MxZ, 0.0))
    negative = jnp.einsum("nz,mz->nm", probs_NxZ, jnp.maximum(-advantages_MxZ, 0.0))
    return positive, negative


def sign_probabilities(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns P(A > 0 | level), P(A < 0 | level) and P(A = 0 | level), each [N, M]."""
    probs_NxZ, advantages_MxZ = others_and_advantages(
        level_probs_NxM, levels_M, group_size, objective
    )
    above, below, equal = advantages_MxZ > 0, advantages_MxZ < 0, advantages_MxZ == 0

    def probability(event_MxZ: jax.Array) -> jax.Array:
        return jnp.einsum("nz,mz->nm", probs_NxZ, event_MxZ.astype(probs_NxZ.dtype))

    return probability(above), probability(below), probability(equal)


def others_and_advantages(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[Array, jax.Array]:
    """Computes the probability of each composition of the other responses, and its advantages.

    The result is differentiable in `level_probs`. Powers are computed by repeated multiplication,
    so that the derivatives at probability 0 are right. The derivative of q**k could give 0 * inf
    there.

    Returns:
      (probabilities [N, Z], advantages [M, Z]).
    """
    others_ZxM, coefficient_Z = level_counts(group_size - 1, len(levels_M))
    powers = [jnp.ones_like(level_probs_NxM)]
    for _ in range(group_size - 1):
        powers.append(powers[-1] * level_probs_NxM)
    powers_NxMxG = jnp.stack(powers, axis=-1)
    factors_NxZxM = powers_NxMxG[:, np.arange(len(levels_M)), others_ZxM]
    probs_NxZ = coefficient_Z.astype(level_probs_NxM.dtype)[None] * jnp.prod(factors_NxZxM, axis=-1)
    advantages_MxZ = advantage_table(
        jnp.asarray(levels_M, level_probs_NxM.dtype), others_ZxM, objective
    )
    return probs_NxZ, advantages_MxZ
