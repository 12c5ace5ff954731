"""Computes token log-probabilities, with one definition for the sampler and the learner."""

import functools

import jax
import jax.numpy as jnp

from staleness_grpo.policy.numerics import at_least_float32
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Array, Prompts, PyTree


def log_distribution(logits: Array, temperature: float) -> jax.Array:
    """Returns log pi over the vocabulary (last axis) at a temperature > 0, in float32 or better."""
    return jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)) / temperature, axis=-1)


def token_logprobs(logprobs: Array, tokens: Array) -> jax.Array:
    """Picks the entries of log pi [..., V] at `tokens` [...]."""
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def response_logprobs(
    policy: Policy,
    params: PyTree,
    prompts: Prompts,
    tokens_NxGxR: Array,
    mask_NxGxR: Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns log pi of the response tokens, and the policy's entropy in nats at their positions.

    Both are [N, G, R] in float32 or better, and 0 where masked. The entropy carries no gradient.
    """
    hidden = policy.response_hidden(params, prompts.tokens_NxP, prompts.mask_NxP, tokens_NxGxR)
    if policy.config.vocab_chunks > 1:
        head_VxE = params["embedding"] if policy.config.tie_embeddings else params["head"].T
        head_chunks = vocabulary_chunks(head_VxE.astype(hidden.dtype), policy.config.vocab_chunks)
        rows = hidden.reshape(-1, hidden.shape[-1])
        chosen, entropy = chunked_logprobs(rows, head_chunks, tokens_NxGxR.ravel(), temperature)
        shape = tokens_NxGxR.shape
        chosen, entropy = chosen.reshape(shape), entropy.reshape(shape)
        return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)
    logits = policy.unembed(params, hidden)
    logprobs = log_distribution(logits, temperature)
    frozen = jax.lax.stop_gradient(logprobs)
    entropy = -jnp.sum(jnp.exp(frozen) * frozen, axis=-1)
    chosen = token_logprobs(logprobs, tokens_NxGxR)
    return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)


def vocabulary_chunks(head_VxE: Array, num_chunks: int) -> Array:
    """Cuts the unembedding into chunks [F, V/F, E]; chunk f has every F-th token from f on.

    The chunks are no blocks of neighbors. With the vocabulary sharded, every device has its share
    of every chunk.
    """
    return head_VxE.reshape(-1, num_chunks, head_VxE.shape[-1]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_logprobs(
    hidden_OxE: Array, head_chunks: Array, tokens_O: Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Returns log pi of O tokens and the entropy there, from the logits of one chunk at a time.

    Both are [O] in float32 or better. They equal the numbers from `log_distribution`, to rounding.
    Logits [O, V/F] are all that exists at once, because the backward pass computes them again. The
    entropy carries no gradient.

    Args:
      hidden_OxE: hidden states, in any order (O: all positions of all responses).
      head_chunks: [F, V/F, E] of `vocabulary_chunks`.
      tokens_O: int32, the tokens that the hidden states predict.
      temperature: > 0.
    """
    return _chunked_forward(hidden_OxE, head_chunks, tokens_O, temperature)[0]


def _chunk_logits(hidden_OxE: Array, head_chunk: Array, temperature: float) -> jax.Array:
    """Returns the tempered logits [O, V/F] of one chunk [V/F, E]."""
    wide = at_least_float32(hidden_OxE.dtype)
    return jnp.matmul(hidden_OxE, head_chunk.T, preferred_element_type=wide) / temperature


def _place(tokens_O: Array, chunk: Array, num_chunks: int) -> tuple[Array, Array]:
    """Returns the place [O] that tokens have in their chunk, and whether that is this chunk."""
    return tokens_O // num_chunks, tokens_O % num_chunks == chunk


def _chunked_forward(hidden_OxE, head_chunks, tokens_O, temperature):
    """Computes `chunked_logprobs`, and what the backward pass needs."""
    num_chunks = len(head_chunks)
    zeros = jnp.zeros(tokens_O.shape, at_least_float32(hidden_OxE.dtype))

    def add(carry, chunk_and_head):
        largest, total, weighted, chosen = carry
        chunk, head_chunk = chunk_and_head
        logits = _chunk_logits(hidden_OxE, head_chunk, temperature)
        place, inside = _place(tokens_O, chunk, num_chunks)
        chosen = jnp.where(inside, token_logprobs(logits, place), chosen)
        new = jnp.maximum(largest, jnp.max(logits, axis=-1))
        # With m the largest logit so far, `total` is the sum of exp(x - m), and `weighted` that of
        # (x - m) exp(x - m).
        shift = jnp.where(total > 0, largest - new, 0.0)
        scale = jnp.exp(shift)
        x = logits - new[:, None]
        weights = jnp.exp(x)
        weighted = scale * (weighted + shift * total) + jnp.sum(weights * x, axis=-1)
        total = scale * total + jnp.sum(weights, axis=-1)
        return (new, total, weighted, chosen), None

    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    (largest, total, weighted, chosen), _ = jax.lax.scan(
        add, start, (jnp.arange(num_chunks), head_chunks)
    )
    log_total = jnp.log(total)
    normalizer = largest + log_total
    entropy = log_total - weighted / total
    return (chosen - normalizer, entropy), (hidden_OxE, head_chunks, tokens_O, normalizer)


def _chunked_backward(temperature, residuals, cotangents):
    """Returns the gradients with respect to hidden states and head; the entropy has none."""
    hidden_OxE, head_chunks, tokens_O, normalizer = residuals
    slope_O = cotangents[0] / temperature
    num_chunks, dtype = len(head_chunks), hidden_OxE.dtype

    def add(hidden_gradient, chunk_and_head):
        chunk, head_chunk = chunk_and_head
        probs = jnp.exp(_chunk_logits(hidden_OxE, head_chunk, temperature) - normalizer[:, None])
        place, inside = _place(tokens_O, chunk, num_chunks)
        one_hot = inside[:, None] & (place[:, None] == jnp.arange(len(head_chunk))[None])
        # In the dtype of the activations, like every other product. In float32 they are many times
        # slower on a GPU.
        gradient = (slope_O[:, None] * (one_hot - probs)).astype(dtype)
        hidden_gradient += jnp.matmul(
            gradient, head_chunk, preferred_element_type=hidden_gradient.dtype
        )
        return hidden_gradient, jnp.matmul(gradient.T, hidden_OxE)

    start = jnp.zeros(hidden_OxE.shape, at_least_float32(dtype))
    hidden_gradient, head_gradient = jax.lax.scan(add, start, (jnp.arange(num_chunks), head_chunks))
    return hidden_gradient.astype(dtype), head_gradient, None


chunked_logprobs.defvjp(_chunked_forward, _chunked_backward)
