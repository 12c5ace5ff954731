"""Token log-probabilities, one definition for the sampler and the learner."""

import jax
import jax.numpy as jnp

from staleness_grpo.policy.transformer import Policy, at_least_float32
from staleness_grpo.types import Array, Prompts, PyTree


def log_distribution(logits: Array, temperature: float) -> jax.Array:
    """log pi over the vocabulary (last axis) at a sampling temperature > 0, in float32 or better."""
    return jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)) / temperature, axis=-1)


def token_logprobs(logprobs: Array, tokens: Array) -> jax.Array:
    """The entries of log pi [..., V] at `tokens` [...]."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def response_logprobs(
    policy: Policy,
    params: PyTree,
    prompts: Prompts,
    tokens_NxGxR: Array,
    mask_NxGxR: Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """log pi of the response tokens and the policy's entropy in nats at their positions.

    Both [N, G, R] in float32 or better, 0 where masked. The entropy carries no gradient.
    """
    logits = policy.response_logits(params, prompts.tokens_NxP, prompts.mask_NxP, tokens_NxGxR)
    logprobs = log_distribution(logits, temperature)
    frozen = jax.lax.stop_gradient(logprobs)
    entropy = -jnp.sum(jnp.exp(frozen) * frozen, axis=-1)
    chosen = token_logprobs(logprobs, tokens_NxGxR)
    return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)
