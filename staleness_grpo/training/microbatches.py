"""Applies a function of a batch to a few groups at a time, to save memory."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.types import PyTree, Rollout


def in_parts(batch: PyTree, num_parts: int) -> PyTree:
    """Cuts a batch [N, ...] into parts [num_parts, N / num_parts, ...].

    Part i has every num_parts-th group, starting with group i. If consecutive groups of the batch
    are on one device, each part is then spread over all devices too.
    """
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]).swapaxes(0, 1), batch
    )


def joined(parts: PyTree) -> PyTree:
    """Joins the parts from `in_parts` into the original batch."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), parts)


def num_microbatches(num_prompts: int, microbatch_prompts: int) -> int:
    """Returns the number of parts if each part has `microbatch_prompts` groups.

    If `microbatch_prompts` does not divide `num_prompts`, the size of a part is the greatest common
    divisor of both.
    """
    return num_prompts // math.gcd(num_prompts, microbatch_prompts)


def in_microbatches(function: Callable, microbatch_prompts: int) -> Callable:
    """Returns `function(params, *batch)`, computed for `microbatch_prompts` groups at a time.

    The results of the parts are joined. The backward pass runs each part again and adds the parts'
    gradients. So the activations of only one part exist at a time. Code that uses the result gets
    the values of all groups. So the gradient is exactly that of the whole batch, even if the length
    normalization or the correction uses batch statistics.
    """

    def mapped(params, *batch):
        num_parts = num_microbatches(len(jax.tree.leaves(batch)[0]), microbatch_prompts)
        on_part = jax.checkpoint(lambda part: function(params, *part))
        return joined(jax.lax.map(on_part, in_parts(batch, num_parts)))

    return mapped


def accumulated(
    logprobs_of: Callable,
    loss_of_logprobs: Callable,
    scored_batch: Callable[[Rollout], tuple],
    microbatch_prompts: int,
) -> Callable[[PyTree, Rollout], tuple[jax.Array, dict[str, jax.Array]]]:
    """Returns the loss (params, rollout) -> (loss, diagnostics), whose gradient takes one pass.

    `in_microbatches` needs two passes. One pass is enough if no response's gradient depends on the
    log-probabilities of another response. For each microbatch, the loss of the whole batch is
    differentiated. In this loss, the behavior policy's log-probabilities replace the unknown
    log-probabilities of the other microbatches. The gradients of the microbatches are added. Loss
    and diagnostics are computed from the joined log-probabilities.

    Args:
      logprobs_of: (params, *scored batch) -> (log pi, entropy), both [N, G, R].
      loss_of_logprobs: (log pi, entropy, rollout) -> (loss, diagnostics).
      scored_batch: rollout -> the arguments of `logprobs_of` that follow the parameters.
      microbatch_prompts: number of groups in a microbatch.
    """

    @jax.custom_vjp
    def loss_fn(params, rollout):
        on_batch = in_microbatches(logprobs_of, microbatch_prompts)
        logprobs, entropy = on_batch(params, *scored_batch(rollout))
        return loss_of_logprobs(logprobs, entropy, rollout)

    def forward(params, rollout):
        behavior_logprobs = rollout.responses.behavior_logprobs_NxGxR
        num_parts = num_microbatches(len(behavior_logprobs), microbatch_prompts)
        behavior_parts = in_parts(behavior_logprobs, num_parts)

        def add(gradient, numbered_part):
            number, part = numbered_part
            logprobs, pull, entropy = jax.vjp(lambda p: logprobs_of(p, *part), params, has_aux=True)
            placeholders = jnp.asarray(behavior_parts, logprobs.dtype)

            def whole_batch_loss(parts):
                logprobs = joined(parts)
                return loss_of_logprobs(logprobs, jnp.zeros_like(logprobs), rollout)[0]

            slopes = jax.grad(whole_batch_loss)(placeholders.at[number].set(logprobs))
            gradient = jax.tree.map(jnp.add, gradient, pull(slopes[number])[0])
            return mesh_lib.keep_parameters_split(gradient), (logprobs, entropy)

        parts = jnp.arange(num_parts), in_parts(scored_batch(rollout), num_parts)
        gradient, outputs = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return loss_of_logprobs(*joined(outputs), rollout), gradient

    def backward(gradient, cotangents):
        scaled = jax.tree.map(lambda leaf: (cotangents[0] * leaf).astype(leaf.dtype), gradient)
        return scaled, None

    loss_fn.defvjp(forward, backward)
    return loss_fn
