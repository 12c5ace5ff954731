"""Token log-probabilities, one definition for the sampler and the learner."""

import functools

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
    hidden = policy.response_hidden(params, prompts.tokens_NxP, prompts.mask_NxP, tokens_NxGxR)
    if policy.config.vocab_chunks > 1:
        head_VxE = params["embedding"] if policy.config.tie_embeddings else params["head"].T
        head_CxVxE = vocabulary_chunks(head_VxE.astype(hidden.dtype), policy.config.vocab_chunks)
        rows = hidden.reshape(-1, hidden.shape[-1])
        chosen, entropy = chunked_logprobs(rows, head_CxVxE, tokens_NxGxR.ravel(), temperature)
        chosen, entropy = (values.reshape(tokens_NxGxR.shape) for values in (chosen, entropy))
        return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)
    logits = policy.unembed(params, hidden)
    logprobs = log_distribution(logits, temperature)
    frozen = jax.lax.stop_gradient(logprobs)
    entropy = -jnp.sum(jnp.exp(frozen) * frozen, axis=-1)
    chosen = token_logprobs(logprobs, tokens_NxGxR)
    return jnp.where(mask_NxGxR, chosen, 0.0), jnp.where(mask_NxGxR, entropy, 0.0)


def vocabulary_chunks(head_VxE: Array, num_chunks: int) -> jax.Array:
    """The unembedding in parts [C, V/C, E]; part c has every C-th token from c on.

    Not blocks: with the vocabulary sharded, every device has its share of every part.
    """
    return head_VxE.reshape(-1, num_chunks, head_VxE.shape[-1]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def chunked_logprobs(
    hidden_TxE: Array, head_CxVxE: Array, tokens_T: Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """log pi of T tokens and the entropy there, both [T] in float32 or better, from one part's logits at a time.

    The same numbers as from `log_distribution`, to rounding. Logits of [T, V/C] are all that exists at once: the
    backward pass computes them again. The entropy carries no gradient.
    """
    return _chunked_forward(hidden_TxE, head_CxVxE, tokens_T, temperature)[0]


def _chunk_logits(hidden_TxE, head_VxE, temperature):
    wide = at_least_float32(hidden_TxE.dtype)
    return jnp.matmul(hidden_TxE, head_VxE.T, preferred_element_type=wide) / temperature


def _place(tokens_T, chunk, num_chunks):
    """Where a token stands in a part, and whether it does."""
    return tokens_T // num_chunks, tokens_T % num_chunks == chunk


def _chunked_forward(hidden_TxE, head_CxVxE, tokens_T, temperature):
    num_chunks = len(head_CxVxE)
    zeros = jnp.zeros(tokens_T.shape, at_least_float32(hidden_TxE.dtype))

    def add(carry, chunk_and_head):
        largest, total, weighted, chosen = carry
        chunk, head_VxE = chunk_and_head
        logits = _chunk_logits(hidden_TxE, head_VxE, temperature)
        place, inside = _place(tokens_T, chunk, num_chunks)
        chosen = jnp.where(inside, token_logprobs(logits, place), chosen)
        new = jnp.maximum(largest, jnp.max(logits, axis=-1))
        # Sums of exp(x - m) and of (x - m) exp(x - m) under the largest logit m so far.
        shift = jnp.where(total > 0, largest - new, 0.0)
        scale = jnp.exp(shift)
        x = logits - new[:, None]
        weights = jnp.exp(x)
        weighted = scale * (weighted + shift * total) + jnp.sum(weights * x, axis=-1)
        total = scale * total + jnp.sum(weights, axis=-1)
        return (new, total, weighted, chosen), None

    start = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    (largest, total, weighted, chosen), _ = jax.lax.scan(add, start, (jnp.arange(num_chunks), head_CxVxE))
    log_total = jnp.log(total)
    normalizer = largest + log_total
    entropy = log_total - weighted / total
    return (chosen - normalizer, entropy), (hidden_TxE, head_CxVxE, tokens_T, normalizer)


def _chunked_backward(temperature, residuals, cotangents):
    hidden_TxE, head_CxVxE, tokens_T, normalizer = residuals
    slope_T = cotangents[0] / temperature
    num_chunks, dtype = len(head_CxVxE), hidden_TxE.dtype

    def add(hidden_gradient, chunk_and_head):
        chunk, head_VxE = chunk_and_head
        probs = jnp.exp(_chunk_logits(hidden_TxE, head_VxE, temperature) - normalizer[:, None])
        place, inside = _place(tokens_T, chunk, num_chunks)
        one_hot = inside[:, None] & (place[:, None] == jnp.arange(len(head_VxE))[None])
        # In the dtype of the activations, like every other product: float32 ones are many times slower on a GPU.
        gradient = (slope_T[:, None] * (one_hot - probs)).astype(dtype)
        hidden_gradient += jnp.matmul(gradient, head_VxE, preferred_element_type=hidden_gradient.dtype)
        return hidden_gradient, jnp.matmul(gradient.T, hidden_TxE)

    start = jnp.zeros(hidden_TxE.shape, at_least_float32(dtype))
    hidden_gradient, head_gradient = jax.lax.scan(add, start, (jnp.arange(num_chunks), head_CxVxE))
    return hidden_gradient.astype(dtype), head_gradient, None


chunked_logprobs.defvjp(_chunked_forward, _chunked_backward)
