"""Truncates the distribution over tokens by top-k, top-p and the tokenizer's size, as engines do.

The order is that of vLLM and transformers: temperature, then top-k, then top-p of what is left.
Before them, entries that no token of the task has are removed. The kept tokens are renormalized.

Equally probable tokens are kept together or removed together. Engines agree for top-k. For top-p
they keep as many of the equals as their sort puts first. So our set has theirs, and perhaps more.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from staleness_grpo.errors import require, require_at_least, require_choice
from staleness_grpo.policy.numerics import at_least_float32, leading_axes
from staleness_grpo.types import Array

DISTRIBUTIONS = ("truncated", "full")


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Says which tokens of a distribution are kept. Neutral values keep all of them."""

    top_p: float = 1.0  # the fewest most probable tokens with at least this mass
    top_k: int = 0  # the k most probable tokens; 0: all
    num_tokens: int | None = None  # only tokens below this number; None: all


def check_truncation(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if `config.sampler` truncates in an impossible way."""
    require(0 < fields["top_p"] <= 1, "top_p", "give a number in (0, 1]", fields["top_p"])
    require_at_least(fields, {"top_k": 0})
    require_choice(fields, "learner_distribution", DISTRIBUTIONS)


def learner_truncates(fields: Any) -> bool:
    """Says whether `config.sampler` truncates the learner's distribution too."""
    truncates = fields.top_p < 1 or fields.top_k > 0 or fields.task_tokens_only
    return truncates and fields.learner_distribution == "truncated"


def check_chunks(config: Any) -> None:
    """Raises FieldError if the learner would truncate a vocabulary that it sees in parts."""
    chunks = config.policy.vocab_chunks
    hint = (
        "a truncated sampler needs all logits of a token at once in the learner too: "
        "give 1, or set sampler.learner_distribution=full"
    )
    is_whole = chunks == 1 or not learner_truncates(config.sampler)
    require(is_whole, "policy.vocab_chunks", hint, chunks)


def make_truncation(fields: Any, task_tokens: int, policy_tokens: int) -> Truncation | None:
    """Returns the truncation that `config.sampler` describes; None if it keeps every token.

    Args:
      fields: `config.sampler`.
      task_tokens: the tokens of the task, numbered from 0. A text task has its tokenizer's.
      policy_tokens: the entries of the policy's vocabulary.
    """
    padded = fields.task_tokens_only and task_tokens < policy_tokens
    truncation = Truncation(
        top_p=float(fields.top_p),
        top_k=fields.top_k if fields.top_k < policy_tokens else 0,
        num_tokens=task_tokens if padded else None,
    )
    return None if truncation == Truncation() else truncation


def kept_tokens(logits: Array, truncation: Truncation) -> jax.Array:
    """Returns for each tempered logit [..., V] whether the truncation keeps its token.

    A token is kept by top-p if all tokens that are more probable have less than the mass p. The
    most probable token is always kept. Where logits are NaN, all known tokens are kept.
    """
    logits = _without_unknown(jax.lax.stop_gradient(logits), truncation)
    order = jnp.argsort(logits, axis=-1, descending=True)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    removed = ordered == -jnp.inf
    if truncation.top_k:
        removed |= _after(ordered, min(truncation.top_k, logits.shape[-1]))
    if truncation.top_p < 1:
        mass = jnp.cumsum(jax.nn.softmax(jnp.where(removed, -jnp.inf, ordered), axis=-1), axis=-1)
        mass_before = jnp.concatenate([jnp.zeros_like(mass[..., :1]), mass[..., :-1]], axis=-1)
        removed |= _after(ordered, jnp.sum(mass_before < truncation.top_p, -1, keepdims=True))
    return ~jnp.take_along_axis(removed, jnp.argsort(order, axis=-1), axis=-1)


def _after(ordered: Array, count: Array | int) -> jax.Array:
    """Returns which entries come after the first `count` [..., 1] and are smaller than the last.

    Places decide, and values only between equals. A compiled program may compute one logit twice
    and round it in two ways: by values alone, the token at the edge would be less than itself.
    """
    edge_place = jnp.broadcast_to(jnp.maximum(count - 1, 0), (*ordered.shape[:-1], 1))
    edge = jnp.take_along_axis(ordered, edge_place, axis=-1)
    edge = jnp.where(jnp.isnan(ordered).any(axis=-1, keepdims=True), jnp.nan, edge)
    place = leading_axes(jnp.arange(ordered.shape[-1]), ordered.ndim)
    return (place >= count) & (ordered < edge)


def _without_unknown(logits: Array, truncation: Truncation) -> jax.Array:
    """Sets the logits of entries that the task has no token for to -inf."""
    if truncation.num_tokens is None:
        return jnp.asarray(logits)
    is_known = jnp.arange(logits.shape[-1]) < truncation.num_tokens
    return jnp.where(leading_axes(is_known, logits.ndim), logits, -jnp.inf)


def _shifted(
    logits: Array, temperature: float, truncation: Truncation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (tempered logits minus their maximum, kept tokens, log of the kept tokens' sum)."""
    tempered = jnp.asarray(logits, at_least_float32(logits.dtype)) / temperature
    largest = jnp.max(_without_unknown(tempered, truncation), axis=-1, keepdims=True)
    shifted = tempered - jax.lax.stop_gradient(largest)
    kept = kept_tokens(shifted, truncation)
    log_total = jnp.log(jnp.sum(jnp.exp(jnp.where(kept, shifted, -jnp.inf)), axis=-1))
    return shifted, kept, log_total


def truncated_distribution(logits: Array, temperature: float, truncation: Truncation) -> jax.Array:
    """Returns log pi of the truncated distribution [..., V], -inf for tokens that it removes."""
    shifted, kept, log_total = _shifted(logits, temperature, truncation)
    return jnp.where(kept, shifted - log_total[..., None], -jnp.inf)


def truncated_logprobs(
    logits: Array, tokens: Array, temperature: float, truncation: Truncation
) -> tuple[jax.Array, jax.Array]:
    """Returns log pi of `tokens` and the entropy of the truncated distribution, both [...].

    The tokens were sampled from another policy, whose truncation may keep others. A token that
    these logits' truncation removes is put back into the kept set, for its own log-probability
    alone. So the result is finite, and for such a token it is above the true value, -inf.

    The kept set is constant in the gradient. The entropy has no gradient.
    """
    shifted, kept, log_total = _shifted(logits, temperature, truncation)
    chosen = jnp.take_along_axis(shifted, tokens[..., None], axis=-1)[..., 0]
    is_kept = jnp.take_along_axis(kept, tokens[..., None], axis=-1)[..., 0]
    logprobs = chosen - jnp.where(is_kept, log_total, jnp.logaddexp(log_total, chosen))
    frozen = jax.lax.stop_gradient(jnp.where(kept, shifted - log_total[..., None], 0.0))
    entropy = -jnp.sum(jnp.where(kept, jnp.exp(frozen) * frozen, 0.0), axis=-1)
    return logprobs, entropy
