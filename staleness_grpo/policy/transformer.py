"""Defines the Flax decoder, and `Policy`, which offers the decoder as pure functions of `params`.

The config decides the size, from a toy of 20k parameters to the models of the Llama and Qwen
family. The decoder has:

  - RMSNorm, rotary positions, grouped-query attention and SwiGLU;
  - tied or untied embeddings;
  - optional biases of q/k/v and optional norms of q/k.

The G responses to a prompt share the prompt's keys and values. In sampling and in the update, each
prompt is encoded once, and its responses attend to the result.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from staleness_grpo.policy import joined
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.attention import attend, attend_causally, rotate, rotations
from staleness_grpo.policy.cudnn import attend_by_cudnn
from staleness_grpo.policy.layers import Projection, RMSNorm, SwiGLU
from staleness_grpo.policy.numerics import at_least_float32
from staleness_grpo.policy.splash import attend_by_splash
from staleness_grpo.runtime.mesh import keep_split
from staleness_grpo.types import Array, PyTree

KERNELS = {"splash": attend_by_splash, "cudnn": attend_by_cudnn}  # by TransformerConfig.attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Holds the keys (rotated) and values of every layer.

    Each tuple has one array [N, G, K, C, H] per layer, with G = 1 for prompts. The axis of heads
    comes before the axis of positions, because attention multiplies in this order. So the sampler's
    cache is never transposed.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


class Attention(nn.Module):
    """Computes grouped-query attention. Returns the outputs and (keys, values).

    The outputs belong to the last `num_queries` positions. Keys and values belong to all.
    """

    config: TransformerConfig
    num_queries: int

    @nn.compact
    def __call__(
        self,
        x_NxGxLxE: Array,
        rotation: tuple[Array, Array],
        own_mask: Array,
        cache: tuple[Array, Array] | None,
        cache_index: Array | None,
        prefix: tuple[Array, Array] | None,
        prefix_mask_NxP: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        cfg = self.config
        project = functools.partial(Projection, dtype=cfg.dtype, param_dtype=cfg.param_dtype)
        project_in = functools.partial(project, use_bias=cfg.qkv_bias)
        first = x_NxGxLxE.shape[2] - self.num_queries  # the first position with a query
        q = project_in((cfg.num_heads, cfg.head_dim), name="query")(x_NxGxLxE[:, :, first:])
        k = project_in((cfg.num_kv_heads, cfg.head_dim), name="key")(x_NxGxLxE)
        v = project_in((cfg.num_kv_heads, cfg.head_dim), name="value")(x_NxGxLxE)
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="query_norm")(q)
            k = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="key_norm")(k)
        q = jnp.swapaxes(rotate(q, *(x[:, :, first:] for x in rotation)), 2, 3)
        own_mask = own_mask[:, :, first:]
        k = jnp.swapaxes(rotate(k, *rotation), 2, 3)
        v = jnp.swapaxes(v, 2, 3)
        if cache is not None:
            assert cache_index is not None, "a cache needs cache_index, the position to write at"
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, cache_index, axis=3)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, cache_index, axis=3)
        n, g, _, length, _ = q.shape
        q = q.reshape(n, g, cfg.num_kv_heads, -1, length, cfg.head_dim).swapaxes(3, 4)
        attention = jax.checkpoint(attend) if cfg.remat == "attention" else attend
        if cache is not None:
            y = attention(q, (k, v), own_mask, prefix, prefix_mask_NxP)
        elif cfg.attention in KERNELS:
            y = KERNELS[cfg.attention](q, (k, v), own_mask, prefix, prefix_mask_NxP)
        else:
            y = attend_causally(attention, q, (k, v), own_mask, prefix, prefix_mask_NxP)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, g, length, cfg.num_heads, cfg.head_dim)
        return project((cfg.d_model,), inputs=2, name="out")(y), (k, v)


class Transformer(nn.Module):
    """Computes the hidden states of the decoder, including the final norm but not the logits."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens_NxGxL: Array,
        positions_NxGxL: Array,
        own_mask: Array,
        cache: KeyValues | None = None,
        cache_index: Array | None = None,
        prefix: KeyValues | None = None,
        prefix_mask_NxP: Array | None = None,
        num_last: int | None = None,
    ) -> tuple[Array, KeyValues]:
        """Returns hidden states [N, G, num_last, E] and the KeyValues of these tokens.

        Args:
          tokens_NxGxL, positions_NxGxL: int32, the tokens and their rotary positions.
          own_mask: [N or 1, G or 1, L, C], True where a query attends to an own position.
          cache: KeyValues of C positions. The KeyValues of these tokens are written into the cache.
            Without a cache, C = L.
          cache_index: the cache position of the first of these tokens.
          prefix: the KeyValues of the prompts.
          prefix_mask_NxP: True where queries attend to a prompt position.
          num_last: number of positions at the end whose hidden states are returned; None: all. If
            these are few, the last block computes only keys and values of the others.
        """
        cfg = self.config
        length = tokens_NxGxL.shape[2]
        num_last = length if num_last is None else num_last
        # Another shape takes longer to compile, so it has to save something. The fused kernels want
        # as many queries as keys.
        is_cut = 3 * num_last <= 2 * length and cfg.attention not in KERNELS
        attention, mlp = (
            (nn.remat(Attention), nn.remat(SwiGLU))
            if cfg.remat == "blocks"
            else (Attention, SwiGLU)
        )
        embedding = self.param(
            "embedding",
            nn.initializers.normal(cfg.d_model**-0.5),
            (cfg.vocab_size, cfg.d_model),
            cfg.param_dtype,
        )
        x = keep_split(jnp.take(embedding, tokens_NxGxL, axis=0).astype(cfg.dtype))
        rotation = rotations(positions_NxGxL, cfg)
        keys, values = [], []
        for i in range(cfg.num_layers):
            layer = f"layer_{i}"
            h = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name=f"{layer}_attention_norm")(x)
            num_queries = num_last if is_cut and i == cfg.num_layers - 1 else length
            y, (k, v) = attention(cfg, num_queries, name=f"{layer}_attention")(
                h,
                rotation,
                own_mask,
                None if cache is None else (cache.keys[i], cache.values[i]),
                cache_index,
                None if prefix is None else (prefix.keys[i], prefix.values[i]),
                prefix_mask_NxP,
            )
            x = keep_split(x[:, :, length - num_queries :] + y)
            h = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name=f"{layer}_mlp_norm")(x)
            x = keep_split(x + mlp(cfg, name=f"{layer}_mlp")(h))
            keys.append(k)
            values.append(v)
        x = x[:, :, x.shape[2] - num_last :]
        x = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="final_norm")(x)
        if not cfg.tie_embeddings:  # created with the other parameters; Policy.unembed uses it
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", init, (cfg.d_model, cfg.vocab_size), cfg.param_dtype)
        return x, KeyValues(tuple(keys), tuple(values))


@dataclasses.dataclass(frozen=True)
class Policy:
    """Offers the decoder as pure functions of `params`. A Policy is hashable."""

    config: TransformerConfig

    @property
    def dtype(self) -> str:
        """The type of activations."""
        return self.config.dtype

    def init(self, key: jax.Array) -> PyTree:
        """Returns new random parameters in `param_dtype`."""
        tokens, mask = jnp.zeros((1, 1, 1), jnp.int32), jnp.ones((1, 1, 1, 1), bool)
        return Transformer(self.config).init(key, tokens, tokens, mask)["params"]

    def _apply_transformer(
        self, params: PyTree, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array, KeyValues]:
        outputs: Any = Transformer(self.config).apply({"params": params}, *args, **kwargs)
        return outputs

    def unembed(self, params: PyTree, hidden: Array) -> jax.Array:
        """Returns the logits [..., V] of hidden states [..., E], in at least float32."""
        head = params["embedding"].T if self.config.tie_embeddings else params["head"]
        rows = hidden.reshape(-1, hidden.shape[-1])
        dtype = self.config.dtype
        logits = jnp.matmul(
            rows, head.astype(dtype), preferred_element_type=at_least_float32(dtype)
        )
        return logits.reshape(*hidden.shape[:-1], head.shape[-1])

    def apply(self, params: PyTree, tokens_BxT: Array) -> jax.Array:
        """Returns the logits [B, T, V] of sequences without padding, with causal attention.

        The logits at position t predict token t + 1.
        """
        length = tokens_BxT.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length), tokens_BxT.shape)
        causal = jnp.tril(jnp.ones((length, length), bool))
        hidden, _ = self._apply_transformer(
            params, tokens_BxT[:, None], positions[:, None], causal[None, None]
        )
        return self.unembed(params, hidden[:, 0])

    def prefill(
        self, params: PyTree, tokens_NxP: Array, mask_NxP: Array
    ) -> tuple[jax.Array, KeyValues]:
        """Encodes left-padded prompts.

        Returns:
          The hidden states [N, E] at the last token of each prompt, and the KeyValues of the
          prompts.
        """
        length = tokens_NxP.shape[1]
        positions = joined.prompt_positions(mask_NxP)
        causal = jnp.tril(jnp.ones((length, length), bool))
        visible = (causal[None] & mask_NxP[:, None, :])[:, None]
        hidden, prefix = self._apply_transformer(
            params, tokens_NxP[:, None], positions[:, None], visible, num_last=1
        )
        return hidden[:, 0, 0], prefix

    def empty_cache(self, num_prompts: int, group_size: int, length: int) -> KeyValues:
        """Returns KeyValues filled with zeros, for `length` response positions."""
        cfg = self.config
        shape = (num_prompts, group_size, cfg.num_kv_heads, length, cfg.head_dim)
        zeros = tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))
        return KeyValues(zeros, zeros)

    def decode(
        self,
        params: PyTree,
        tokens_NxG: Array,
        index: Array,
        cache: KeyValues,
        prefix: KeyValues,
        prefix_mask_NxP: Array,
    ) -> tuple[jax.Array, KeyValues]:
        """Decodes one token of every response, at response position `index`.

        Returns:
          The hidden states [N, G, E] at this position, and the new cache.
        """
        lengths_Nx1 = jnp.sum(prefix_mask_NxP, axis=-1)[:, None]
        positions = jnp.broadcast_to(lengths_Nx1 + index, tokens_NxG.shape)
        visible = (jnp.arange(cache.keys[0].shape[3]) <= index)[None, None, None]
        tokens, positions = tokens_NxG[..., None], positions[..., None]
        hidden, cache = self._apply_transformer(
            params, tokens, positions, visible, cache, index, prefix, prefix_mask_NxP
        )
        return hidden[:, :, 0], cache

    def response_hidden(
        self,
        params: PyTree,
        prompt_tokens_NxP: Array,
        prompt_mask_NxP: Array,
        response_tokens_NxGxR: Array,
    ) -> jax.Array:
        """Returns the hidden states [N, G, R, E] from which each response token is predicted.

        Each prompt is encoded once for its whole group. Very short groups are joined with their
        prompt to one sequence (`joined.py`).
        """
        num_prompts, group_size, length = response_tokens_NxGxR.shape
        num_inputs = group_size * (length - 1)
        if num_inputs <= joined.JOINED_POSITIONS and self.config.attention not in KERNELS:
            inputs = response_tokens_NxGxR[:, :, :-1]
            tokens, positions, visible = joined.join(prompt_tokens_NxP, prompt_mask_NxP, inputs)
            hidden, _ = self._apply_transformer(
                params,
                tokens[:, None],
                positions[:, None],
                visible[:, None],
                num_last=1 + num_inputs,
            )
            return joined.split(hidden[:, 0], group_size)
        last_NxE, prefix = self.prefill(params, prompt_tokens_NxP, prompt_mask_NxP)
        hidden = jnp.broadcast_to(
            last_NxE[:, None, None], (num_prompts, group_size, 1, last_NxE.shape[-1])
        )
        if length > 1:
            inputs = response_tokens_NxGxR[:, :, :-1]
            lengths_Nx1x1 = jnp.sum(prompt_mask_NxP, axis=-1)[:, None, None]
            positions = lengths_Nx1x1 + jnp.arange(length - 1)[None, None]
            positions = jnp.broadcast_to(positions, inputs.shape)
            causal = jnp.tril(jnp.ones((length - 1, length - 1), bool))[None, None]
            rest, _ = self._apply_transformer(
                params, inputs, positions, causal, prefix=prefix, prefix_mask_NxP=prompt_mask_NxP
            )
            hidden = jnp.concatenate([hidden, rest], axis=2)
        return hidden

    def response_logits(
        self,
        params: PyTree,
        prompt_tokens_NxP: Array,
        prompt_mask_NxP: Array,
        response_tokens_NxGxR: Array,
    ) -> jax.Array:
        """Returns the logits [N, G, R, V] from which each response token is predicted."""
        hidden = self.response_hidden(
            params, prompt_tokens_NxP, prompt_mask_NxP, response_tokens_NxGxR
        )
        return self.unembed(params, hidden)
