"""Expected advantages of a response over the random rest of its group, by a multinomial sum."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.types import Array


def level_counts(total: int, num_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Every way in which `total` responses can fall on M levels: counts [K, M] and multinomial coefficients [K]."""
    counts = [k for k in itertools.product(range(total + 1), repeat=num_levels - 1) if sum(k) <= total]
    counts = np.array([(*k, total - sum(k)) for k in counts])
    coefficients = [math.factorial(total) // math.prod(map(math.factorial, k)) for k in counts.tolist()]
    return counts, np.array(coefficients, dtype=np.float64)


def advantage_table(levels_M: Array, others_KxM: np.ndarray, objective: SurrogateConfig) -> jax.Array:
    """Advantage [M, K] of a response at each level when the others of its group have these level counts."""
    num_levels = others_KxM.shape[-1]
    counts_MxKxM = others_KxM[None] + np.eye(num_levels, dtype=int)[:, None]
    group_size = counts_MxKxM[0, 0].sum()
    mean_MxK = counts_MxKxM @ levels_M / group_size
    centred = levels_M[:, None] - mean_MxK
    if objective.normalize_std:
        deviations = levels_M[None, None] - mean_MxK[..., None]
        std_MxK = jnp.sqrt(jnp.sum(counts_MxKxM * deviations**2, axis=-1) / group_size)
        centred = centred / (std_MxK + objective.std_epsilon)
    all_equal = np.max(counts_MxKxM, axis=-1) == group_size  # exactly 0, where mean and std would round
    return jnp.where(all_equal, 0.0, centred)


def expected_advantages(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array]:
    """E[max(A, 0) | level] and E[max(-A, 0) | level], both [N, M].

    The other G - 1 responses fall on the levels as Multinomial(G - 1, level_probs). The two parts are apart
    because the clip's branch depends on the sign of A: for a middle level it varies from group to group.
    """
    probs_NxK, advantages_MxK = others_and_advantages(level_probs_NxM, levels_M, group_size, objective)
    positive = jnp.einsum("nk,mk->nm", probs_NxK, jnp.maximum(advantages_MxK, 0.0))
    negative = jnp.einsum("nk,mk->nm", probs_NxK, jnp.maximum(-advantages_MxK, 0.0))
    return positive, negative


def sign_probabilities(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """P(A > 0 | level), P(A < 0 | level) and P(A = 0 | level), each [N, M]."""
    probs_NxK, advantages_MxK = others_and_advantages(level_probs_NxM, levels_M, group_size, objective)
    events = (advantages_MxK > 0, advantages_MxK < 0, advantages_MxK == 0)
    return tuple(jnp.einsum("nk,mk->nm", probs_NxK, event.astype(probs_NxK.dtype)) for event in events)


def others_and_advantages(
    level_probs_NxM: Array, levels_M: Array, group_size: int, objective: SurrogateConfig
) -> tuple[jax.Array, jax.Array]:
    """Probability [N, K] of each way in which the others fall on the levels, and the advantage [M, K] it gives.

    Differentiable in `level_probs`. Powers come from repeated multiplication, so that a level of probability 0
    has derivative 0 and never 0 * inf, which q**k would give.
    """
    others_KxM, coefficient_K = level_counts(group_size - 1, len(levels_M))
    powers = [jnp.ones_like(level_probs_NxM)]
    for _ in range(group_size - 1):
        powers.append(powers[-1] * level_probs_NxM)
    powers_NxMxG = jnp.stack(powers, axis=-1)
    factors_NxKxM = powers_NxMxG[:, np.arange(len(levels_M)), others_KxM]
    probs_NxK = coefficient_K.astype(level_probs_NxM.dtype)[None] * jnp.prod(factors_NxKxM, axis=-1)
    advantages_MxK = advantage_table(jnp.asarray(levels_M, level_probs_NxM.dtype), others_KxM, objective)
    return probs_NxK, advantages_MxK
