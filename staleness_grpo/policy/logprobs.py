"""Computes token log-probabilities, in the same way for the sampler and the learner."""

import functools

import jax
import jax.numpy as jnp

from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.numerics import at_least_float32
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.policy.truncation import Truncation, truncated_logprobs
from staleness_grpo.types import Array, Prompts, PyTree


def log_distribution(logits: Array, temperature: float) -> jax.Array:
    """Returns log pi over the vocabulary (last axis) at a temperature > 0, in at least float32."""
    return jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)) / temperature, axis=-1)


def token_logprobs(logprobs: Array, tokens: Array) -> jax.Array:
    """Selects the log-probability [...] of each of the `tokens` [...] from log pi [..., V]."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def response_logprobs(
    policy: AnyPolicy,
    params: PyTree,
    prompts: Prompts,
    tokens_NxGxR: Array,
    mask_NxGxR: Array,
    temperature: float,
    truncation: Truncation | None = None,
    entropy_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns log pi of the response tokens, and the policy's entropy in nats at their positions.

    Both arrays are [N, G, R] in at least float32, and 0 where masked. The entropy has a gradient
    only with `entropy_gradient`, which needs the vocabulary in one chunk and no truncation.
    With a truncation, both belong to this policy's own truncated distribution
    (`truncation.truncated_logprobs`). The vocabulary must then be in one chunk.
    """
    hidden = policy.response_hidden(params, prompts.tokens_NxP, prompts.mask_NxP, tokens_NxGxR)
    if isinstance(policy, Policy) and policy.config.vocab_chunks > 1:
        assert truncation is None and not entropy_gradient, "both need vocab_chunks=1"
        head_VxE = params["embedding"] if policy.config.tie_embeddings else params["head"].T
        head_chunks = vocabulary_chunks(head_VxE.astype(hidden.dtype), policy.config.vocab_chunks)
        rows = hidden.reshape(-1, hidden.shape[-1])
        chosen, entropy = chunked_logprobs(rows, head_chunks, tokens_NxGxR.ravel(), temperature)
        shape = tokens_NxGxR.shape
        chosen, entropy = chosen.reshape(shape), entropy.reshape(shape)
        return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)
    logits = policy.unembed(params, hidden)
    if truncation is not None:
        assert not entropy_gradient, "a truncated entropy has no gradient"
        chosen, entropy = truncated_logprobs(logits, tokens_NxGxR, temperature, truncation)
        return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)
    logprobs = log_distribution(logits, temperature)
    frozen = logprobs if entropy_gradient else jax.lax.stop_gradient(logprobs)
    entropy = -jnp.sum(jnp.exp(frozen) * frozen, axis=-1)
    chosen = token_logprobs(logprobs, tokens_NxGxR)
    return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)


def vocabulary_chunks(head_VxE: Array, num_chunks: int) -> Array:
    """Splits the unembedding into chunks [F, V/F, E]. Chunk f has the tokens f, f + F, f + 2F, ...

    Neighboring tokens go to different chunks. So when the vocabulary is sharded, every device holds
    an equal part of every chunk.
    """
    return head_VxE.reshape(-1, num_chunks, head_VxE.shape[-1]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_logprobs(
    hidden_OxE: Array, head_chunks: Array, tokens_O: Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Returns log pi of O tokens and the entropy at their positions, one chunk at a time.

    Both arrays are [O] in at least float32. Up to rounding, they equal the values computed from
    `log_distribution`. Only the logits [O, V/F] of one chunk are in memory at a time. The backward
    pass recomputes them. The entropy has no gradient.

    Args:
      hidden_OxE: hidden states, in any order (O: all positions of all responses).
      head_chunks: the [F, V/F, E] array that `vocabulary_chunks` returns.
      tokens_O: int32, the token that follows each hidden state.
      temperature: > 0.
    """
    return _chunked_forward(hidden_OxE, head_chunks, tokens_O, temperature)[0]


def _chunk_logits(hidden_OxE: Array, head_chunk: Array, temperature: float) -> jax.Array:
    """Returns the tempered logits [O, V/F] of one chunk [V/F, E]."""
    wide = at_least_float32(hidden_OxE.dtype)
    return jnp.matmul(hidden_OxE, head_chunk.T, preferred_element_type=wide) / temperature


def _index_in_chunk(tokens_O: Array, chunk: Array, num_chunks: int) -> tuple[Array, Array]:
    """Returns the index [O] of each token in its chunk, and whether its chunk is `chunk`, [O]."""
    return tokens_O // num_chunks, tokens_O % num_chunks == chunk


def _chunked_forward(hidden_OxE, head_chunks, tokens_O, temperature):
    """Returns the results of `chunked_logprobs`, and the residuals for the backward pass."""
    num_chunks = len(head_chunks)
    zeros = jnp.zeros(tokens_O.shape, at_least_float32(hidden_OxE.dtype))

    def add_chunk(carry, chunk_and_head):
        largest, total, weighted, chosen = carry
        chunk, head_chunk = chunk_and_head
        logits = _chunk_logits(hidden_OxE, head_chunk, temperature)
        index, inside = _index_in_chunk(tokens_O, chunk, num_chunks)
        chosen = jnp.where(inside, token_logprobs(logits, index), chosen)
        new_largest = jnp.maximum(largest, jnp.max(logits, axis=-1))
        # With m the largest logit so far, `total` is the sum of exp(x - m), and `weighted` is the
        # sum of (x - m) exp(x - m).
        shift = jnp.where(total > 0, largest - new_largest, 0.0)
        scale = jnp.exp(shift)
        x = logits - new_largest[:, None]
        weights = jnp.exp(x)
        weighted = scale * (weighted + shift * total) + jnp.sum(weights * x, axis=-1)
        total = scale * total + jnp.sum(weights, axis=-1)
        return (new_largest, total, weighted, chosen), None

    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    (largest, total, weighted, chosen), _ = jax.lax.scan(
        add_chunk, start, (jnp.arange(num_chunks), head_chunks)
    )
    log_total = jnp.log(total)
    normalizer = largest + log_total
    entropy = log_total - weighted / total
    return (chosen - normalizer, entropy), (hidden_OxE, head_chunks, tokens_O, normalizer)


def _chunked_backward(temperature, residuals, cotangents):
    """Returns the gradients of the log-probabilities in the hidden states and the head."""
    hidden_OxE, head_chunks, tokens_O, normalizer = residuals
    slope_O = cotangents[0] / temperature
    num_chunks, dtype = len(head_chunks), hidden_OxE.dtype

    def add_chunk(hidden_gradient, chunk_and_head):
        chunk, head_chunk = chunk_and_head
        probs = jnp.exp(_chunk_logits(hidden_OxE, head_chunk, temperature) - normalizer[:, None])
        index, inside = _index_in_chunk(tokens_O, chunk, num_chunks)
        one_hot = inside[:, None] & (index[:, None] == jnp.arange(len(head_chunk))[None])
        # The products are computed in the dtype of the activations, like all others. In float32
        # they would be many times slower on a GPU.
        gradient = (slope_O[:, None] * (one_hot - probs)).astype(dtype)
        hidden_gradient += jnp.matmul(
            gradient, head_chunk, preferred_element_type=hidden_gradient.dtype
        )
        return hidden_gradient, jnp.matmul(gradient.T, hidden_OxE)

    start = jnp.zeros(hidden_OxE.shape, at_least_float32(dtype))
    hidden_gradient, head_gradient = jax.lax.scan(
        add_chunk, start, (jnp.arange(num_chunks), head_chunks)
    )
    return hidden_gradient.astype(dtype), head_gradient, None


chunked_logprobs.defvjp(_chunked_forward, _chunked_backward)
