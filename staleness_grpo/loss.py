"""The surrogate of a rollout as a function of the parameters: for a whole batch, or a few groups at a time.

The policy may run on microbatches; what the surrogate takes from the batch, it takes from all of it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from staleness_grpo import mesh as mesh_lib
from staleness_grpo.objective.advantages import group_advantages
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.surrogate import SurrogateConfig, corrected_surrogate
from staleness_grpo.objective.update_corrections import sequence_ess
from staleness_grpo.policy.logprobs import response_logprobs
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Array, PyTree, Rollout


def surrogate_loss(
    policy: Policy, surrogate: SurrogateConfig, temperature: float, correction=None, microbatch_prompts: int = 0
) -> Callable[[PyTree, Rollout], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of a Rollout as a function (params, rollout) -> (loss, diagnostics); its gradient is -H.

    `correction` is `config.correction`; without it, the plain clip of GRPO. With `microbatch_prompts` the policy runs
    on that many groups at a time: see `accumulated` and, for corrections that need all log-probabilities before any
    gradient, `in_microbatches`.
    """
    loss_of_logprobs = logprobs_loss(surrogate, correction)
    name = "grpo_clip" if correction is None else correction.name
    if microbatch_prompts and not registry.CORRECTIONS[name].reads_other_responses:
        return accumulated(logprobs_function(policy, temperature), loss_of_logprobs, microbatch_prompts)
    logprobs_of = logprobs_function(policy, temperature, microbatch_prompts)

    def loss_fn(params, rollout):
        logprobs, entropy = logprobs_of(params, *scored_batch(rollout))
        return loss_of_logprobs(logprobs, entropy, rollout)

    return loss_fn


def logprobs_function(
    policy: Policy, temperature: float, microbatch_prompts: int = 0
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, prompts, tokens_NxGxR, mask_NxGxR) -> (log pi of the tokens, entropy), both [N, G, R]."""

    def logprobs_of(params, prompts, tokens_NxGxR, mask_NxGxR):
        return response_logprobs(policy, params, prompts, tokens_NxGxR, mask_NxGxR, temperature)

    return in_microbatches(logprobs_of, microbatch_prompts) if microbatch_prompts else logprobs_of


def scored_batch(rollout: Rollout) -> tuple:
    """What the policy reads of a rollout: the arguments of a `logprobs_function` behind the parameters."""
    return rollout.prompts, rollout.responses.tokens_NxGxR, rollout.responses.mask_NxGxR


def logprobs_loss(
    surrogate: SurrogateConfig, correction=None
) -> Callable[[Array, Array, Rollout], tuple[jax.Array, dict[str, jax.Array]]]:
    """The same loss as a function of what the policy says: (policy_logprobs, entropy, rollout) -> (loss, diagnostics).

    It takes the advantages within groups, and the length normalization and the correction over the whole batch.
    """
    name = "grpo_clip" if correction is None else correction.name
    overrides = {} if correction is None else registry.chosen(registry.CORRECTIONS[name].objective, correction)
    token_objective = registry.bind(name, surrogate, overrides)

    def loss_of_logprobs(policy_logprobs, entropy, rollout):
        responses = rollout.responses
        rewards = jnp.asarray(rollout.rewards_NxG, policy_logprobs.dtype)
        advantages = group_advantages(rewards, normalize_std=surrogate.normalize_std, std_epsilon=surrogate.std_epsilon)
        behavior_logprobs, mask = responses.behavior_logprobs_NxGxR, responses.mask_NxGxR
        loss, diagnostics = corrected_surrogate(
            policy_logprobs,
            behavior_logprobs,
            policy_logprobs if rollout.proximal_logprobs_NxGxR is None else rollout.proximal_logprobs_NxGxR,
            advantages,
            mask,
            surrogate.length_normalization,
            token_objective,
        )
        tokens = jnp.maximum(jnp.sum(mask), 1)
        diagnostics |= {
            "sequence_ess": sequence_ess(policy_logprobs, behavior_logprobs, mask),
            "entropy": jnp.sum(entropy) / tokens,
            "reward": jnp.mean(rewards),
            "reward_std_in_group": jnp.mean(jnp.std(rewards, axis=-1)),
            "response_length": jnp.mean(jnp.sum(mask, axis=-1)),
        }
        return loss, diagnostics

    return loss_of_logprobs


def in_parts(batch: PyTree, num_parts: int) -> PyTree:
    """[N, ...] as [num_parts, N / num_parts, ...].

    Part i takes every num_parts-th group, so that a batch sharded in blocks stays sharded in every part.
    """
    return jax.tree.map(lambda leaf: leaf.reshape(-1, num_parts, *leaf.shape[1:]).swapaxes(0, 1), batch)


def joined(parts: PyTree) -> PyTree:
    """The batch that `in_parts` cut."""
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), parts)


def num_microbatches(num_prompts: int, microbatch_prompts: int) -> int:
    """Parts of `microbatch_prompts` groups, or of their greatest common divisor if that does not divide the batch."""
    return num_prompts // math.gcd(num_prompts, microbatch_prompts)


def in_microbatches(function: Callable, microbatch_prompts: int) -> Callable:
    """`function(params, *batch)` of groups, applied to `microbatch_prompts` of them at a time, and joined.

    The backward pass runs each part again and adds up the parts' gradients, so that no more than one part's
    activations exist at once. The surrogate between sees the log-probabilities of all groups, which is why the
    gradient is that of the whole batch, whatever the length normalization or correction takes from the batch.
    """

    def mapped(params, *batch):
        num_parts = num_microbatches(len(jax.tree.leaves(batch)[0]), microbatch_prompts)
        return joined(jax.lax.map(jax.checkpoint(lambda part: function(params, *part)), in_parts(batch, num_parts)))

    return mapped


def accumulated(logprobs_of: Callable, loss_of_logprobs: Callable, microbatch_prompts: int) -> Callable:
    """The loss (params, rollout) -> (loss, diagnostics) with its gradient taken in one pass over the microbatches.

    `in_microbatches` runs the policy forward over the whole batch before any gradient, and again for each part's. But
    if the loss's slope in a response's log-probabilities depends on no other response's, a part's gradient is known as
    soon as its own are: the whole batch's loss is differentiated where the other parts' stand at arbitrary values, the
    behavior policy's. Loss and diagnostics come from the joined log-probabilities, as ever.
    """

    @jax.custom_vjp
    def loss_fn(params, rollout):
        logprobs, entropy = in_microbatches(logprobs_of, microbatch_prompts)(params, *scored_batch(rollout))
        return loss_of_logprobs(logprobs, entropy, rollout)

    def forward(params, rollout):
        behavior_logprobs = rollout.responses.behavior_logprobs_NxGxR
        num_parts = num_microbatches(len(behavior_logprobs), microbatch_prompts)
        behavior_parts = in_parts(behavior_logprobs, num_parts)

        def add(gradient, numbered_part):
            number, part = numbered_part
            logprobs, pull, entropy = jax.vjp(lambda p: logprobs_of(p, *part), params, has_aux=True)
            elsewhere = jnp.asarray(behavior_parts, logprobs.dtype)
            slope = jax.grad(lambda x: loss_of_logprobs(joined(x), jnp.zeros_like(joined(x)), rollout)[0])(
                elsewhere.at[number].set(logprobs)
            )[number]
            gradient = jax.tree.map(jnp.add, gradient, pull(slope)[0])
            return mesh_lib.keep_parameters_split(gradient), (logprobs, entropy)

        parts = jnp.arange(num_parts), in_parts(scored_batch(rollout), num_parts)
        gradient, outputs = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        return loss_of_logprobs(*joined(outputs), rollout), gradient

    def backward(gradient, cotangents):
        return jax.tree.map(lambda leaf: (cotangents[0] * leaf).astype(leaf.dtype), gradient), None

    loss_fn.defvjp(forward, backward)
    return loss_fn
