"""Defines the interface of a policy, which the sampler, the loss and the exact bias use.

The decoder `policy.transformer.Policy` has this interface. A class of one's own needs no base
class: see docs/own_policy.md.
"""

from typing import Any, Protocol

import jax

from staleness_grpo.types import Array, PyTree


class AnyPolicy(Protocol):
    """A causal language model as pure functions of `params`. A policy is hashable.

    JAX traces every method. A hidden state is any vector [E] from which `unembed` computes the
    logits of the next token. `prefix` and `cache` are pytrees that only the policy itself reads.
    The three ways to the logits must agree: `apply`, `response_hidden`, and `prefill` with
    `decode`. `own.check_agreement` compares them.
    """

    def __hash__(self) -> int:
        """Returns a hash, because a policy is a static argument of compiled programs."""
        ...

    @property
    def dtype(self) -> str:
        """The type to which the sampler casts the parameters: bfloat16, float32 or float64."""
        ...

    def init(self, key: jax.Array) -> PyTree:
        """Returns new random parameters.

        Parameters without a rule in `runtime.mesh.PARAMETER_RULES` are replicated.
        """
        ...

    def apply(self, params: PyTree, tokens_BxT: Array) -> jax.Array:
        """Returns the logits [B, T, V] of sequences without padding.

        The logits at position t predict token t + 1, and depend on the tokens 0..t only.
        """
        ...

    def prefill(self, params: PyTree, tokens_NxP: Array, mask_NxP: Array) -> tuple[jax.Array, Any]:
        """Encodes left-padded prompts; the mask is False on the padding.

        Returns:
          The hidden states [N, E] at the last token of each prompt, and `prefix`.
        """
        ...

    def empty_cache(self, num_prompts: int, group_size: int, length: int) -> Any:
        """Returns the cache before the first call of `decode`, for `length` response positions."""
        ...

    def decode(
        self,
        params: PyTree,
        tokens_NxG: Array,
        index: Array,
        cache: Any,
        prefix: Any,
        prefix_mask_NxP: Array,
    ) -> tuple[jax.Array, Any]:
        """Reads one token of every response, which is at response position `index`, from 0.

        Returns:
          The hidden states [N, G, E] at this position, and a new cache of the same shapes.
        """
        ...

    def response_hidden(
        self,
        params: PyTree,
        prompt_tokens_NxP: Array,
        prompt_mask_NxP: Array,
        response_tokens_NxGxR: Array,
    ) -> jax.Array:
        """Returns the hidden states [N, G, R, E] from which each response token is predicted."""
        ...

    def unembed(self, params: PyTree, hidden: Array) -> jax.Array:
        """Returns the logits [..., V] of hidden states [..., E], in at least float32."""
        ...
