"""Measures the ceiling of the gradient cosine, and paired gradients."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training import vectors
from staleness_grpo.training.loss import Loss, scored_batch
from staleness_grpo.training.microbatches import in_parts
from staleness_grpo.types import Array, PyTree, Rollout

NOISE_PARTS = 8  # the largest number of parts of a batch that separate signal from noise


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """Returns a copy of each array. All runs share this function, so that it is compiled once."""
    return jax.tree.map(jnp.copy, tree)


def cosine(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the cosine of the angle between two pytrees; NaN if one of them is 0."""
    return vectors.inner(a, b) / (vectors.norm(a) * vectors.norm(b))


def make_cosine_ceiling(
    loss_fn: Loss, num_prompts: int
) -> Callable[[PyTree, Rollout], Array] | None:
    """Returns jitted (params, rollout) -> the cosine of two independent batches' gradients.

    Two gradients at the same parameters differ only by sampling noise. So their cosine is a ceiling
    of the cosine of consecutive gradients.

    The batch of `num_prompts` groups is cut into equal parts of whole groups. The number of parts
    is the greatest common divisor of `num_prompts` and NOISE_PARTS. The parts have gradients g_i
    with mean g. The mean of g_i . g_j over i != j is an unbiased estimate of the squared norm of
    the expected gradient. Divided by |g|^2, this is the estimate of the cosine. The estimate can be
    negative if the gradient is mostly noise.

    Returns None if `num_prompts` is odd.
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
        square_of_mean = vectors.inner(mean, mean)
        mean_of_squares = vectors.inner(gradients, gradients) / num_parts
        signal = (num_parts * square_of_mean - mean_of_squares) / (num_parts - 1)
        return signal / square_of_mean

    return ceiling


def make_paired_gram(
    logprobs_of: Callable[..., tuple[jax.Array, jax.Array]],
    loss_of_logprobs: Callable[[Array, Array, Rollout], tuple[jax.Array, dict]],
    num_blocks: int,
    add_norms: Callable[[PyTree, Rollout], Rollout] | None = None,
) -> Callable[[PyTree, Rollout, Rollout], Array]:
    """Returns jitted (params, stale rollout, fresh rollout) -> inner products [4, J, J].

    The N groups are cut into J = `num_blocks` blocks. A block's gradient is J times the block's
    part of the gradient of the whole batch's surrogate. So the mean over blocks is H, even if the
    length normalization or the correction uses statistics of the whole batch.

    The stale rollout has block gradients s_i, and the fresh rollout has block gradients f_i. The
    four matrices, in the order that `bias.paired` expects, are:
      (s_i - f_i) . (s_j - f_j);
      s_i . s_j;
      f_i . f_j;
      s_i . f_j.
    The computation holds 3 J gradients in memory.

    Args:
      logprobs_of: a `loss.logprobs_function`.
      loss_of_logprobs: a `loss.logprobs_loss`.
      num_blocks: J.
      add_norms: a `loss.score_norms_function`, if the loss has the optimal baseline.
    """

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
        def of_leaves(x, y):  # flattened axes would lose their sharding
            inner = tuple(range(1, x.ndim))
            return jnp.tensordot(x, y, axes=(inner, inner), precision="highest")

        return sum(jax.tree.leaves(jax.tree.map(of_leaves, a, b)))

    @jax.jit
    def paired_gram(params, stale, fresh):
        if add_norms is not None:
            stale, fresh = add_norms(params, stale), add_norms(params, fresh)
        stale, fresh = block_gradients(params, stale), block_gradients(params, fresh)
        bias = jax.tree.map(jnp.subtract, stale, fresh)
        pairs = ((bias, bias), (stale, stale), (fresh, fresh), (stale, fresh))
        return jnp.stack([inner_products(*pair) for pair in pairs])

    return paired_gram
