"""Joins the very short responses of a group with their prompt to one sequence.

XLA on CPU runs batched products one after another, and starting a short one costs more than
computing it. So one pass over the joined sequences is faster than a pass over the prompts and one
over the responses.
"""

import jax
import jax.numpy as jnp

from staleness_grpo.types import Array

# A group with at most this many response positions is joined. On CPUs this is faster up to about
# here, and slower for longer responses: see docs/log/2026-11-30-a-faster-toy.md.
JOINED_POSITIONS = 56


def prompt_positions(mask_NxP: Array) -> jax.Array:
    """Returns the rotary positions [N, P] of left-padded prompts, and 0 for the padding."""
    return jnp.maximum(jnp.cumsum(mask_NxP, axis=-1) - 1, 0)


def join(
    prompt_tokens_NxP: Array, prompt_mask_NxP: Array, inputs_NxGxL: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns tokens [N, T], rotary positions [N, T] and the mask [N, T, T] of joined sequences.

    A sequence is the prompt and then all its responses, so T = P + G L. A query sees the prompt and
    its own response up to itself, and no other response.
    """
    n, g, length = inputs_NxGxL.shape
    p = prompt_tokens_NxP.shape[1]
    tokens = jnp.concatenate([prompt_tokens_NxP, inputs_NxGxL.reshape(n, g * length)], axis=1)
    prompt_lengths_Nx1 = jnp.sum(prompt_mask_NxP, axis=-1, keepdims=True)
    own_positions = prompt_lengths_Nx1 + jnp.tile(jnp.arange(length), g)[None]
    positions = jnp.concatenate([prompt_positions(prompt_mask_NxP), own_positions], axis=1)
    # The response that each position belongs to; -1: the prompt.
    owner = jnp.pad(jnp.repeat(jnp.arange(g), length), (p, 0), constant_values=-1)
    related = (owner[None] == -1) | (owner[None] == owner[:, None])
    is_real = jnp.pad(prompt_mask_NxP, ((0, 0), (0, g * length)), constant_values=True)
    return tokens, positions, jnp.tril(related)[None] & is_real[:, None]


def split(hidden_NxOxE: Array, group_size: int) -> jax.Array:
    """Returns the hidden states [N, G, 1 + L, E] from which each response token is predicted.

    Args:
      hidden_NxOxE: those of the last token of the prompt and of all response positions, so
        O = 1 + G L.
      group_size: G.
    """
    n, o, e = hidden_NxOxE.shape
    last = jnp.broadcast_to(hidden_NxOxE[:, None, :1], (n, group_size, 1, e))
    own = hidden_NxOxE[:, 1:].reshape(n, group_size, (o - 1) // group_size, e)
    return jnp.concatenate([last, own], axis=2)
