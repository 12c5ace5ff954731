"""Computes the squared norm of each response's score, for the baseline of least variance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from staleness_grpo.policy.numerics import at_least_float32
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training.microbatches import in_parts, joined, num_microbatches
from staleness_grpo.types import Array, Prompts, PyTree


def score_norms(
    logprobs_of: Callable[..., tuple[jax.Array, jax.Array]],
    params: PyTree,
    prompts: Prompts,
    tokens_NxGxR: Array,
    mask_NxGxR: Array,
    microbatch_prompts: int,
) -> jax.Array:
    """Returns |grad_theta sum_t log pi_theta(y_t)|^2 of each response, [N, G].

    The norm includes all parameters. The result has no gradient, and at least float32.

    At one time, the gradients of one response to each of `microbatch_prompts` groups are in memory.
    So with as many groups as a batch has shards, each device holds one gradient. The computation
    costs one more forward and backward pass, in which every response encodes its own prompt.

    Args:
      logprobs_of: a `loss.logprobs_function` for the whole batch.
      params: theta.
      prompts: the prompts of N groups.
      tokens_NxGxR: int32, the tokens of the responses.
      mask_NxGxR: bool, True on the tokens that are in the sum. A response without any has norm 0.
      microbatch_prompts: number of groups that are processed at a time; 0: all.
    """
    frozen = jax.lax.stop_gradient(params)

    def norm_of_response(prompt: Prompts, tokens_R: Array, mask_R: Array) -> jax.Array:
        group = jax.tree.map(lambda leaf: leaf[None], prompt)

        def log_probability(params: PyTree) -> jax.Array:
            logprobs, _ = logprobs_of(params, group, tokens_R[None, None], mask_R[None, None])
            return jnp.sum(logprobs)

        return _squared_norm(jax.grad(log_probability)(frozen))

    def norms_of_part(part: tuple) -> jax.Array:
        prompts, *responses = part

        def norms_of_member(member: list) -> jax.Array:
            batch = jax.tree.map(mesh_lib.keep_split, (prompts, *member))
            return jax.vmap(norm_of_response)(*batch)

        by_member = [leaf.swapaxes(0, 1) for leaf in responses]
        return jax.lax.map(norms_of_member, by_member).swapaxes(0, 1)

    batch = jax.tree.map(jnp.asarray, (prompts, tokens_NxGxR, mask_NxGxR))
    num_groups = len(tokens_NxGxR)
    num_parts = num_microbatches(num_groups, microbatch_prompts or num_groups)
    return joined(jax.lax.map(norms_of_part, in_parts(batch, num_parts)))


def _squared_norm(gradient: PyTree) -> jax.Array:
    """Returns the sum of the squares of all entries, in at least float32."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(at_least_float32(leaf.dtype))))
        for leaf in jax.tree.leaves(gradient)
    ]
    return jnp.sum(jnp.stack(squares))
