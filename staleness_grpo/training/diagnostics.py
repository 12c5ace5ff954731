"""Measures beside the loop: parameter drift, the gradient cosine's ceiling, paired gradients."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from staleness_grpo.objective.surrogate import SurrogateConfig
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training.loss import Loss, logprobs_function, logprobs_loss, scored_batch
from staleness_grpo.training.microbatches import in_parts
from staleness_grpo.types import Array, PyTree, Rollout

NOISE_PARTS = 8  # at most, of the batch whose gradients tell signal from noise


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the cosine of the angle between two pytrees; NaN when one of them is 0."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))


def distance(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the Euclidean norm of a - b."""
    return optax.tree.norm(optax.tree.sub(a, b))


class ParameterDrift:
    """Measures how far the parameters are from the start and from the batch's behavior versions.

    It keeps a copy of every version whose rollouts are in flight: up to S + 1 copies.
    """

    def __init__(self, params: PyTree, max_lag: int):
        self._max_lag = max_lag
        self._copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
        self._distance = jax.jit(distance)
        self.start = self._copy(params)
        self.versions: dict[int, PyTree] = {}

    def remember(self, version: int, params: PyTree) -> None:
        """Keeps a copy of this version, since the update donates `params` themselves."""
        self.versions[version] = self._copy(params)

    def measure(self, step: int, params: PyTree, lag_N: np.ndarray) -> dict[str, jax.Array]:
        """Returns `drift_from_behavior` and `drift_from_start`, on the device.

        The first is the root mean square over the groups of the distance to the version that
        generated each. Versions that no later step needs are forgotten.
        """
        lags, counts = np.unique(lag_N, return_counts=True)
        square = jnp.zeros(())  # a group of lag 0 is at distance 0
        for lag, count in zip(lags, counts, strict=True):
            if lag > 0:
                moved = self._distance(params, self.versions[step - lag])
                square += count / len(lag_N) * moved**2
        self.versions = {v: kept for v, kept in self.versions.items() if v > step - self._max_lag}
        return {
            "drift_from_behavior": jnp.sqrt(square),
            "drift_from_start": self._distance(params, self.start),
        }


def make_cosine_ceiling(
    loss_fn: Loss, num_prompts: int
) -> Callable[[PyTree, Rollout], Array] | None:
    """Returns jitted (params, rollout) -> the cosine of two independent batches' gradients.

    Two gradients at the same parameters differ by sampling noise alone, which caps the cosine of
    consecutive gradients. The batch of `num_prompts` groups is cut into equal parts of whole
    groups, NOISE_PARTS if they divide it, with gradients g_i and mean g. The mean of g_i . g_j over
    i != j estimates the squared norm of the expected gradient without bias. Divided by |g|^2 it
    estimates the cosine. It can be negative when the gradient is mostly noise.

    Returns None if the batch cannot be cut.
    """
    num_parts = math.gcd(num_prompts, NOISE_PARTS)
    if num_parts == 1:
        return None

    @jax.jit
    def ceiling(params: PyTree, rollout: Rollout) -> Array:
        gradients = jax.lax.map(
            lambda part: jax.grad(loss_fn, has_aux=True)(params, part)[0],
            in_parts(rollout, num_parts),
        )
        mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)
        square_of_mean = optax.tree.norm(mean, squared=True)
        mean_of_squares = optax.tree.norm(gradients, squared=True) / num_parts
        signal = (num_parts * square_of_mean - mean_of_squares) / (num_parts - 1)
        return signal / square_of_mean

    return ceiling


def make_paired_gram(
    policy: Policy,
    surrogate: SurrogateConfig,
    temperature: float,
    correction: Any,
    microbatch_prompts: int,
    num_blocks: int,
) -> Callable[[PyTree, Rollout, Rollout], Array]:
    """Returns jitted (params, stale rollout, fresh rollout) -> inner products [4, J, J].

    The N groups are cut into J = `num_blocks` blocks. A block's gradient is J times its part of the
    gradient of the whole batch's surrogate. So the mean over blocks is H, whatever the length
    normalization or the correction takes from the batch. With gradients s_i of the stale and f_i of
    the fresh rollout the four matrices are (s_i - f_i) . (s_j - f_j), s_i . s_j, f_i . f_j and
    s_i . f_j, as `bias.paired` reads them. Memory: 3 J gradients.
    """
    logprobs_of = logprobs_function(policy, temperature, microbatch_prompts)
    loss_of_logprobs = logprobs_loss(surrogate, correction)

    def block_gradients(params, rollout):
        batch = scored_batch(rollout)
        logprobs, entropy = logprobs_of(params, *batch)

        def scaled_surrogate(logprobs):
            return -num_blocks * loss_of_logprobs(logprobs, entropy, rollout)[0]

        cotangent = jax.grad(scaled_surrogate)(logprobs)

        def block_gradient(block):
            inputs, cotangent = block
            _, pull = jax.vjp(lambda p: logprobs_of(p, *inputs)[0], params)
            return mesh_lib.keep_parameters_split(pull(cotangent)[0])

        return jax.lax.map(block_gradient, in_parts((batch, cotangent), num_blocks))

    def inner_products(a, b):
        def of_leaves(x, y):  # over all axes as they are: flattened, they could not stay split
            inner = tuple(range(1, x.ndim))
            return jnp.tensordot(x, y, axes=(inner, inner), precision="highest")

        return sum(jax.tree.leaves(jax.tree.map(of_leaves, a, b)))

    @jax.jit
    def paired_gram(params, stale, fresh):
        stale, fresh = block_gradients(params, stale), block_gradients(params, fresh)
        bias = jax.tree.map(jnp.subtract, stale, fresh)
        pairs = ((bias, bias), (stale, stale), (fresh, fresh), (stale, fresh))
        return jnp.stack([inner_products(*pair) for pair in pairs])

    return paired_gram
