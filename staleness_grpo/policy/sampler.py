"""Samples responses from a policy, with a KV cache and an early stop.

The Gumbel noise of a token depends only on (seed, step, slot, response, position). So a response
does not depend on the other responses in its batch.

`sample` samples whole responses. `begin`, `go_on` and `read_again` sample them in parts, so that
the parameters can change between two tokens.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.errors import require_at_least
from staleness_grpo.policy.base import AnyPolicy
from staleness_grpo.policy.logprobs import log_distribution, token_logprobs
from staleness_grpo.policy.noise import unrolled
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unfinished:
    """Holds responses whose first tokens are sampled."""

    position: Array  # int32 scalar, the number of tokens that each response may have so far
    responses: Responses
    alive_NxG: Array  # bool, False for responses that have ended
    token_NxG: Array  # int32, the last token of each response
    cache: Any  # of the policy; it has all tokens but the last
    prefix: Any  # of the policy


@dataclasses.dataclass(frozen=True)
class _Sampling:
    """Holds what stays the same while the tokens of a batch are sampled."""

    policy: AnyPolicy
    params: PyTree
    prompts: Prompts
    keys_NxG: jax.Array
    temperature: float
    group_size: int
    max_length: int
    end_token: int | tuple[int, ...] | None
    pad_token: int
    truncation: Truncation | None

    def begin(self) -> Unfinished:
        """Reads the prompts, and samples the first token of each response."""
        num_prompts = self.prompts.tokens_NxP.shape[0]
        shape = (num_prompts, self.group_size, self.max_length)
        hidden_NxE, prefix = self.prefill()
        hidden_NxGxE = jnp.broadcast_to(hidden_NxE[:, None], (*shape[:2], hidden_NxE.shape[-1]))
        responses = Responses(
            tokens_NxGxR=jnp.full(shape, self.pad_token, jnp.int32),
            mask_NxGxR=jnp.zeros(shape, bool),
            behavior_logprobs_NxGxR=jnp.zeros(shape, at_least_float32(self.policy.dtype)),
        )
        alive_NxG = jnp.ones(shape[:2], bool)
        written, alive, token = self._write_token(responses, alive_NxG, 0, hidden_NxGxE)
        return Unfinished(jnp.int32(1), written, alive, token, self.empty_cache(), prefix)

    def go_on(self, unfinished: Unfinished, end: Array | int) -> Unfinished:
        """Samples until each response has ended, or has `end` tokens."""
        prefix = unfinished.prefix

        def is_unfinished(loop):
            position, _, alive, _, _ = loop
            return (position < end) & jnp.any(alive)

        def advance(loop):
            position, responses, alive, token, cache = loop
            hidden, cache = self.decode(token, position - 1, cache, prefix)
            return position + 1, *self._write_token(responses, alive, position, hidden), cache

        start = unfinished
        loop = (start.position, start.responses, start.alive_NxG, start.token_NxG, start.cache)
        loop = jax.lax.while_loop(is_unfinished, advance, loop)
        return Unfinished(*loop, prefix)

    def read_again(self, unfinished: Unfinished) -> Unfinished:
        """Computes the policy's cache and prefix anew from the prompts and the sampled tokens."""
        _, prefix = self.prefill()
        tokens_NxGxR = unfinished.responses.tokens_NxGxR

        def read_token(index, cache):
            token = jax.lax.dynamic_index_in_dim(tokens_NxGxR, index, axis=2, keepdims=False)
            return self.decode(token, index, cache, prefix)[1]

        cache = jax.lax.fori_loop(0, unfinished.position - 1, read_token, self.empty_cache())
        return dataclasses.replace(unfinished, cache=cache, prefix=prefix)

    def prefill(self) -> tuple[jax.Array, Any]:
        return self.policy.prefill(self.params, self.prompts.tokens_NxP, self.prompts.mask_NxP)

    def empty_cache(self) -> Any:
        num_prompts = self.prompts.tokens_NxP.shape[0]
        return self.policy.empty_cache(num_prompts, self.group_size, max(self.max_length - 1, 1))

    def decode(self, token_NxG: Array, index: Array, cache: Any, prefix: Any) -> tuple:
        mask = self.prompts.mask_NxP
        return self.policy.decode(self.params, token_NxG, index, cache, prefix, mask)

    def _choose_tokens(self, position: Array | int, hidden_NxGxE: Array) -> tuple:
        """Returns the tokens [N, G] of a position, and their log-probabilities."""
        logits = self.policy.unembed(self.params, hidden_NxGxE)
        truncation = self.truncation
        if truncation is None:
            logprobs = log_distribution(logits, self.temperature)
        else:
            logprobs = truncated_distribution(logits, self.temperature, truncation)

        def token_noise(response_key):
            token_key = jax.random.fold_in(response_key, position)
            return jax.random.gumbel(token_key, logprobs.shape[-1:], logprobs.dtype)

        gumbel = jax.vmap(jax.vmap(token_noise))(self.keys_NxG)
        tokens_NxG = first_largest(logprobs + gumbel)
        if truncation is not None and truncation.num_tokens is not None:
            # Where logits are NaN, the last entry would be chosen.
            tokens_NxG = jnp.minimum(tokens_NxG, truncation.num_tokens - 1)
        return tokens_NxG, token_logprobs(logprobs, tokens_NxG)

    def _write_token(
        self, responses: Responses, alive: Array, position: Array | int, hidden_NxGxE: Array
    ) -> tuple[Responses, Array, Array]:
        """Adds a token to each response that is alive; returns (responses, alive, token)."""
        token, logprob = self._choose_tokens(position, hidden_NxGxE)
        token = jnp.where(alive, token, self.pad_token)
        written = jnp.where(alive, logprob, 0.0)
        tokens, mask, logprobs = (
            jnp.asarray(array).at[:, :, position].set(value)
            for array, value in (
                (responses.tokens_NxGxR, token),
                (responses.mask_NxGxR, alive),
                (responses.behavior_logprobs_NxGxR, written),
            )
        )
        if self.end_token is not None:
            ends = self.end_token if isinstance(self.end_token, tuple) else (self.end_token,)
            for end in ends:
                alive = alive & (token != end)
        return Responses(tokens, mask, logprobs), alive, token


def _make_sampling(policy: AnyPolicy, batch: tuple, limits: dict[str, Any]) -> _Sampling:
    """Casts the parameters and makes the keys of a batch.

    Args:
      policy: the policy.
      batch: the other positional arguments of `sample`.
      limits: its keyword arguments.
    """
    params, prompts, key, steps_N, slots_N, temperature = batch
    # The weights are cast once and not for every token. Most of a token's time goes into reading
    # them, and the cast weights may be smaller.
    params = jax.tree.map(lambda leaf: leaf.astype(policy.dtype), params)
    keys_NxG = response_keys(unrolled(key), steps_N, slots_N, limits["group_size"])
    return _Sampling(policy, params, prompts, keys_NxG, temperature, **limits)


_jit = functools.partial(
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


@_jit
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
      group_size: G.
      max_length: R. A response without an end token is cut after R tokens.
      end_token: the token that ends a response and is part of it. With a tuple, any of its tokens
        ends the response. With None all responses have the fixed length R.
      pad_token: fills the positions after the end.
      truncation: removes tokens from the tempered distribution. The recorded log-probabilities
        belong to the renormalized rest. The noise of each token stays the same.

    Returns:
      Responses. `behavior_logprobs` has at least float32 precision and is 0 on the padding.
    """
    batch = (params, prompts, key, steps_N, slots_N, temperature)
    ends = dict(max_length=max_length, end_token=end_token, pad_token=pad_token)
    limits = dict(group_size=group_size, truncation=truncation) | ends
    sampling = _make_sampling(policy, batch, limits)
    return sampling.go_on(sampling.begin(), max_length).responses


# The parts of `sample` take its arguments first.


@_jit
def begin(policy: AnyPolicy, *batch: Any, **limits: Any) -> Unfinished:
    """Reads the prompts, and samples the first token of each response."""
    return _make_sampling(policy, batch, limits).begin()


@functools.partial(_jit, donate_argnames="unfinished")
def go_on(
    policy: AnyPolicy, *batch: Any, unfinished: Unfinished, end: Array | int, **limits: Any
) -> Unfinished:
    """Samples until each response has ended or has `end` tokens.

    The tokens after the first are those of `sample`, if the parameters stay the same. With other
    parameters, the cache and the prefix stay those of the old ones. The memory of `unfinished` is
    used again.
    """
    return _make_sampling(policy, batch, limits).go_on(unfinished, end)


@functools.partial(_jit, donate_argnames="unfinished")
def read_again(policy: AnyPolicy, *batch: Any, unfinished: Unfinished, **limits: Any) -> Unfinished:
    """Computes the cache and the prefix of these parameters from the prompts and the tokens.

    It reads one token after the other. The memory of `unfinished` is used again.
    """
    return _make_sampling(policy, batch, limits).read_again(unfinished)
