"""Samples responses from a policy, with a KV cache and an early stop.

The Gumbel noise of a token depends only on (seed, step, slot, response, position). So a response
does not depend on the other responses in its batch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.errors import require_at_least
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.logprobs import log_distribution, token_logprobs
from staleness_grpo.policy.numerics import at_least_float32, leading_axes
from staleness_grpo.policy.truncation import (
    Truncation,
    check_truncation,
    truncated_distribution,
)
from staleness_grpo.types import Array, Prompts, PyTree, Responses

LOWEST_TEMPERATURE = 1e-3


def check_sampler(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if the temperature in `config.sampler` is too low, or a truncation wrong.

    Near 0 the gradient of almost every response is 0 in float32. Still lower ones overflow.
    """
    require_at_least(fields, {"temperature": LOWEST_TEMPERATURE})
    check_truncation(fields)


def response_keys(key: jax.Array, steps_N: Array, slots_N: Array, group_size: int) -> jax.Array:
    """Derives one key for each response, [N, G], from (key, step, slot, index in the group).

    The keys do not depend on the policy version. So runs with different lags sample with the same
    noise.
    """

    def response_key(step: Array, slot: Array, member: Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, step), slot), member)

    members = jnp.arange(group_size)
    return jax.vmap(
        lambda step, slot: jax.vmap(lambda member: response_key(step, slot, member))(members)
    )(steps_N, slots_N)


def first_largest(x: Array) -> jax.Array:
    """Returns the argmax over the last axis, int32. Of equal maxima, the first is chosen.

    The argmax is computed by two plain reductions, which XLA runs faster on CPU than its own argmax
    (docs/log/).
    """
    indices = leading_axes(jnp.arange(x.shape[-1], dtype=jnp.int32), x.ndim)
    return jnp.min(
        jnp.where(x == jnp.max(x, axis=-1, keepdims=True), indices, x.shape[-1] - 1), axis=-1
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "policy",
        "group_size",
        "max_length",
        "end_token",
        "pad_token",
        "truncation",
    ),
)
def sample(
    policy: AnyPolicy,
    params: PyTree,
    prompts: Prompts,
    key: jax.Array,
    steps_N: Array,
    slots_N: Array,
    temperature: float,
    *,
    group_size: int,
    max_length: int,
    end_token: int | tuple[int, ...] | None,
    pad_token: int,
    truncation: Truncation | None = None,
) -> Responses:
    """Samples `group_size` responses to each prompt, and stops when every response has ended.

    Args:
      policy, params: the behavior policy.
      prompts: N left-padded prompts, whose lengths may differ.
      key: the sampling key of the run.
      steps_N, slots_N: int32, the learner step and the slot in which each group is used. They
        select the noise.
      temperature: > 0. The recorded log-probabilities belong to the tempered distribution.
      max_length: R. A response without an end token is cut after R tokens.
      end_token: the token that ends a response and is part of it. With a tuple, any of its tokens
        ends the response. With None all responses have the fixed length R.
      pad_token: fills the positions after the end.
      truncation: removes tokens from the tempered distribution. The recorded log-probabilities
        belong to the renormalized rest. The noise of each token stays the same.

    Returns:
      Responses. `behavior_logprobs` has at least float32 precision and is 0 on the padding.
    """
    # The weights are cast once and not for every token. Most of a token's time goes into reading
    # them, and the cast weights may be smaller.
    params = jax.tree.map(lambda leaf: leaf.astype(policy.dtype), params)
    shape = (prompts.tokens_NxP.shape[0], group_size, max_length)
    keys_NxG = response_keys(key, steps_N, slots_N, group_size)
    hidden_NxE, prefix = policy.prefill(params, prompts.tokens_NxP, prompts.mask_NxP)
    hidden_NxGxE = jnp.broadcast_to(hidden_NxE[:, None], (*shape[:2], hidden_NxE.shape[-1]))

    def choose_tokens(position, hidden_NxGxE):
        logits = policy.unembed(params, hidden_NxGxE)
        if truncation is None:
            logprobs = log_distribution(logits, temperature)
        else:
            logprobs = truncated_distribution(logits, temperature, truncation)

        def token_noise(response_key):
            token_key = jax.random.fold_in(response_key, position)
            return jax.random.gumbel(token_key, logprobs.shape[-1:], logprobs.dtype)

        gumbel = jax.vmap(jax.vmap(token_noise))(keys_NxG)
        tokens_NxG = first_largest(logprobs + gumbel)
        if truncation is not None and truncation.num_tokens is not None:
            # Where logits are NaN, the last entry would be chosen.
            tokens_NxG = jnp.minimum(tokens_NxG, truncation.num_tokens - 1)
        return tokens_NxG, token_logprobs(logprobs, tokens_NxG)

    def write_tokens(written, position, hidden_NxGxE):
        tokens, mask, logprobs, alive = written
        token, logprob = choose_tokens(position, hidden_NxGxE)
        token = jnp.where(alive, token, pad_token)
        tokens = tokens.at[:, :, position].set(token)
        mask = mask.at[:, :, position].set(alive)
        logprobs = logprobs.at[:, :, position].set(jnp.where(alive, logprob, 0.0))
        if end_token is not None:
            for end in end_token if isinstance(end_token, tuple) else (end_token,):
                alive = alive & (token != end)
        return (tokens, mask, logprobs, alive), token

    empty = (
        jnp.full(shape, pad_token, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, at_least_float32(policy.dtype)),
        jnp.ones(shape[:2], bool),
    )
    written, token = write_tokens(empty, 0, hidden_NxGxE)

    def unfinished(loop):
        position, written, *_ = loop
        return (position < max_length) & jnp.any(written[-1])

    def advance(loop):
        position, written, token, cache = loop
        hidden, cache = policy.decode(params, token, position - 1, cache, prefix, prompts.mask_NxP)
        written, token = write_tokens(written, position, hidden)
        return position + 1, written, token, cache

    cache = policy.empty_cache(*shape[:2], max(max_length - 1, 1))
    _, (tokens, mask, logprobs, _), _, _ = jax.lax.while_loop(
        unfinished, advance, (1, written, token, cache)
    )
    return Responses(tokens_NxGxR=tokens, mask_NxGxR=mask, behavior_logprobs_NxGxR=logprobs)
