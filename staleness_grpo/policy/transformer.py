"""One Flax decoder, from a 20k-parameter toy to the Llama and Qwen family by configuration alone.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied or untied embeddings, optional q/k/v biases
and q/k norms. `Policy` wraps it as pure functions of `params`. The G responses to a prompt share its keys and
values: the prompt is encoded once, in sampling and in the update, and each response attends to it.

More letters: K key/value heads, Q query heads per key/value head, H head dimension, E model dimension,
C cached positions, L query positions.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from staleness_grpo.mesh import keep_split
from staleness_grpo.policy import splash
from staleness_grpo.policy.splash import TILE
from staleness_grpo.types import Array, PyTree

MASKED_SCORE = -1e30  # finite, so that a row without a single visible key stays free of NaN
# A group with at most this many response positions is attended to as one; see `attend_as_one`. On a CPU core it
# saves 30 % of the attention's time at 24 and 56 positions and doubles it at 120 (experiments/LOG.md).
ONE_PRODUCT_POSITIONS = 64
# Causal attention goes through its queries in at most so many blocks, each a multiple of `TILE`; see `attend_causally`.
CAUSAL_BLOCKS = 4

# What the backward pass computes again rather than keeps: nothing; the attention weights, which cost little to compute
# and, without a fused kernel, the most memory; or all of a block but its input.
REMAT = ("none", "attention", "blocks")
# What computes causal attention: XLA, or Splash attention, a kernel for TPUs that keeps no weights in memory.
ATTENTION = ("xla", "splash")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The 'llama3' stretching of rotary frequencies (Llama 3.1 model card and reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The architecture; hashable, so that it can be static under jit."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    dtype: str = "float32"  # of activations; scores, norms and logits are float32 or better
    param_dtype: str = "float32"
    attention: str = "xla"  # one of ATTENTION; a sampled token attends by XLA whichever it is
    remat: str = "none"  # one of REMAT
    vocab_chunks: int = 1  # parts of the vocabulary whose logits a log-probability looks at one after another

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary positions turn pairs of features")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention={self.attention!r} is none of {', '.join(ATTENTION)}")
        if self.attention == "splash" and self.dtype not in splash.DTYPES:
            raise ValueError(f"attention='splash' computes in {' or '.join(splash.DTYPES)}, not dtype={self.dtype!r}")
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is none of {', '.join(REMAT)}")
        if self.vocab_size % self.vocab_chunks:
            raise ValueError(f"vocab_chunks={self.vocab_chunks} does not divide vocab_size={self.vocab_size}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys (rotated) and values of every layer: tuples over layers of [N, G, K, C, H]; G is 1 for a prompt.

    Heads stand before positions: the order in which attention multiplies them, so that the sampler's cache
    is never transposed.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


def at_least_float32(dtype) -> jnp.dtype:
    """float32 for half precisions, otherwise the dtype itself."""
    return jnp.promote_types(dtype, jnp.float32)


def leading_axes(x: Array, ndim: int) -> jax.Array:
    """x with as many leading axes of size 1 as make `ndim`: broadcasting between ranks, written out."""
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))


def rotary_frequencies(config: TransformerConfig) -> jax.Array:
    """Angle per position of each feature pair, [H/2], float32 or better."""
    dtype = at_least_float32(config.dtype)
    exponent = jnp.arange(0, config.head_dim, 2, dtype=dtype) / config.head_dim
    frequency = 1.0 / jnp.asarray(config.rope_theta, dtype) ** exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    wavelength = 2 * jnp.pi / frequency
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    ramp = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - ramp) * frequency / scaling.factor + ramp * frequency
    return jnp.where(wavelength > low, frequency / scaling.factor, jnp.where(wavelength < high, frequency, blended))


def rotate(x_NxGxLxKxH: Array, positions_NxGxL: Array, config: TransformerConfig) -> jax.Array:
    """Rotary position embedding, in the half-split layout of the Hugging Face checkpoints."""
    frequency = rotary_frequencies(config)
    angle = positions_NxGxL[..., None, None].astype(frequency.dtype) * leading_axes(frequency, 5)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x1, x2 = jnp.split(x_NxGxLxKxH.astype(frequency.dtype), 2, axis=-1)
    rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return rotated.astype(x_NxGxLxKxH.dtype)


def attend(q_NxGxKxLxQxH: Array, own: tuple, own_mask: Array, prefix: tuple | None, prefix_mask) -> jax.Array:
    """Softmax attention over a response's own keys and, with `prefix`, its prompt's: [N, G, K, L, Q, H].

    `own` is (keys, values) of [N, G, K, C, H] with mask [N or 1, G or 1, L, C]; `prefix` is (keys, values) of
    [N, 1, K, P, H] with mask [N, P], shared by the G responses and never repeated in memory. The two blocks are
    exponentiated under a common maximum and divided by their common sum at the end, so that the scores are
    never concatenated. Groups of very short responses go through `attend_as_one`.
    """
    n, group_size, k, length, per_kv, h = q_NxGxKxLxQxH.shape
    if prefix is not None and min(group_size, length) > 1 and group_size * length <= ONE_PRODUCT_POSITIONS:
        return attend_as_one(q_NxGxKxLxQxH, own, own_mask, prefix, prefix_mask)
    dtype = q_NxGxKxLxQxH.dtype
    score_dtype = at_least_float32(dtype)
    q = q_NxGxKxLxQxH * h**-0.5

    def over_own(product, x, y):
        return jnp.einsum(product, x, y, preferred_element_type=score_dtype)

    def over_prefix(product, x_NxGxKxLxQxC, y_Nx1xKxPxH):
        # As a product of plain matrices, a prompt's whole group in the rows: XLA on CPU has no other for bfloat16.
        rows = x_NxGxKxLxQxC.swapaxes(1, 2).reshape(n, k, -1, x_NxGxKxLxQxC.shape[-1])
        z = jnp.einsum(product, rows, y_Nx1xKxPxH[:, 0], preferred_element_type=score_dtype)
        return z.reshape(n, k, group_size, length, per_kv, z.shape[-1]).swapaxes(1, 2)

    blocks = [(over_own, "ngklqh,ngkch->ngklqc", "ngklqc,ngkch->ngklqh", *own, own_mask[:, :, None, :, None])]
    if prefix is not None:
        mask = prefix_mask[:, None, None, None, None]
        blocks.append((over_prefix, "nkmh,nkph->nkmp", "nkmp,nkph->nkmh", *prefix, mask))
    scores = [jnp.where(mask, over(product, q, keys), MASKED_SCORE) for over, product, _, keys, _, mask in blocks]
    highest = functools.reduce(jnp.maximum, [jnp.max(block, axis=-1, keepdims=True) for block in scores])
    weights = [jnp.exp(block - jax.lax.stop_gradient(highest)) for block in scores]
    total = sum(jnp.sum(block, axis=-1, keepdims=True) for block in weights)
    y = sum(
        over(product, weight.astype(dtype), values)
        for weight, (over, _, product, _, values, _) in zip(weights, blocks, strict=True)
    )
    return (y / total).astype(dtype)


def attend_as_one(
    q_NxGxKxLxQxH: Array, own: tuple, own_mask: Array, prefix: tuple, prefix_mask_NxP: Array
) -> jax.Array:
    """`attend`, with a group's responses as one long response that sees only the keys that are its own.

    One product of G L queries with P + G C keys, of which most are masked, in place of G products of L with C:
    XLA on CPU runs batched products one by one, and for very short responses a call costs more than the product.
    """
    n, g, k, length, q, h = q_NxGxKxLxQxH.shape
    c = own[0].shape[3]

    def as_one(own_NxGxKxCxH, prefix_Nx1xKxPxH):
        return jnp.concatenate([prefix_Nx1xKxPxH, own_NxGxKxCxH.swapaxes(1, 2).reshape(n, 1, k, g * c, h)], axis=3)

    same_response = jnp.eye(g, dtype=bool)[None, :, None, :, None]
    mask = jnp.broadcast_to(own_mask[:, :, :, None] & same_response, (n, g, length, g, c))
    mask = mask.reshape(n, g * length, g * c)
    prefix_mask = jnp.broadcast_to(prefix_mask_NxP[:, None], (n, g * length, prefix_mask_NxP.shape[1]))
    queries = q_NxGxKxLxQxH.swapaxes(1, 2).reshape(n, 1, k, g * length, q, h)
    keys, values = (as_one(*pair) for pair in zip(own, prefix, strict=True))
    y = attend(queries, (keys, values), jnp.concatenate([prefix_mask, mask], axis=-1)[:, None], None, None)
    return y.reshape(n, k, g, length, q, h).swapaxes(1, 2)


def attend_causally(attention, q_NxGxKxLxQxH: Array, own: tuple, causal_mask: Array, prefix, prefix_mask) -> jax.Array:
    """`attention`, which is `attend`, a block of queries after the other, each with the keys up to its own end alone.

    Of the L x L products, of which the mask leaves half, B blocks make (B + 1) / 2B: 5/8 of them for 4.
    """
    length = q_NxGxKxLxQxH.shape[3]
    size = TILE * math.ceil(length / (TILE * CAUSAL_BLOCKS))
    blocks = []
    for start in range(0, length, size):
        end = min(start + size, length)
        keys, values = (x[:, :, :, :end] for x in own)
        q, mask = q_NxGxKxLxQxH[:, :, :, start:end], causal_mask[:, :, start:end, :end]
        blocks.append(attention(q, (keys, values), mask, prefix, prefix_mask))
    return jnp.concatenate(blocks, axis=3)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 or better."""

    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return normed.astype(x.dtype) * leading_axes(scale.astype(x.dtype), x.ndim)


class Projection(nn.Module):
    """A linear map of the last axis to `features` axes; contracts `inputs` trailing axes of x."""

    features: tuple[int, ...]
    dtype: str
    param_dtype: str
    inputs: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        in_shape = x.shape[x.ndim - self.inputs :]
        rank = len(in_shape)
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=tuple(range(rank)), out_axis=tuple(range(rank, rank + len(self.features)))
        )
        kernel = self.param("kernel", init, (*in_shape, *self.features), self.param_dtype).astype(self.dtype)
        # As one product of two matrices. With the batch axes left in place, XLA on CPU transposes the
        # activations for the weight gradient, which makes the whole backward pass half as fast.
        rows = x.reshape(-1, math.prod(in_shape))
        y = (rows @ kernel.reshape(rows.shape[-1], -1)).reshape(*x.shape[: x.ndim - self.inputs], *self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features, self.param_dtype)
            y = y + leading_axes(bias.astype(self.dtype), y.ndim)
        return y


class Attention(nn.Module):
    """Grouped-query attention that returns its keys and values; see `attend`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_NxGxLxE, positions_NxGxL, own_mask, cache, cache_index, prefix, prefix_mask):
        cfg = self.config
        types = dict(dtype=cfg.dtype, param_dtype=cfg.param_dtype)
        heads = dict(use_bias=cfg.qkv_bias, **types)
        q = Projection((cfg.num_heads, cfg.head_dim), name="query", **heads)(x_NxGxLxE)
        k = Projection((cfg.num_kv_heads, cfg.head_dim), name="key", **heads)(x_NxGxLxE)
        v = Projection((cfg.num_kv_heads, cfg.head_dim), name="value", **heads)(x_NxGxLxE)
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="query_norm")(q)
            k = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="key_norm")(k)
        q = jnp.swapaxes(rotate(q, positions_NxGxL, cfg), 2, 3)
        k = jnp.swapaxes(rotate(k, positions_NxGxL, cfg), 2, 3)
        v = jnp.swapaxes(v, 2, 3)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k, cache_index, axis=3)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v, cache_index, axis=3)
        n, g, _, length, _ = q.shape
        q = q.reshape(n, g, cfg.num_kv_heads, -1, length, cfg.head_dim).swapaxes(3, 4)
        attention = jax.checkpoint(attend) if cfg.remat == "attention" else attend
        if cache is not None:
            y = attention(q, (k, v), own_mask, prefix, prefix_mask)
        elif cfg.attention == "splash":
            y = splash.attend_by_splash(q, (k, v), own_mask, prefix, prefix_mask)
        else:
            y = attend_causally(attention, q, (k, v), own_mask, prefix, prefix_mask)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, g, length, cfg.num_heads, cfg.head_dim)
        return Projection((cfg.d_model,), inputs=2, name="out", **types)(y), (k, v)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        types = dict(dtype=cfg.dtype, param_dtype=cfg.param_dtype)
        gate = Projection((cfg.d_ff,), name="gate", **types)(x)
        up = Projection((cfg.d_ff,), name="up", **types)(x)
        return Projection((cfg.d_model,), name="down", **types)(nn.silu(gate) * up)


class Transformer(nn.Module):
    """The decoder up to its final norm: tokens [N, G, L] to hidden states and KeyValues."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens_NxGxL, positions_NxGxL, own_mask, cache=None, cache_index=None, prefix=None,
                 prefix_mask=None, last_only=False):  # fmt: skip
        """Hidden states [N, G, L, E] (L is 1 with `last_only`) and the KeyValues of these tokens.

        own_mask: [N or 1, G or 1, L, C], which own positions each query sees. cache: KeyValues of C positions
        into which these tokens' are written from `cache_index` on; without it C = L. prefix: the prompt's
        KeyValues, seen where prefix_mask [N, P].
        """
        cfg = self.config
        attention, mlp = (nn.remat(Attention), nn.remat(SwiGLU)) if cfg.remat == "blocks" else (Attention, SwiGLU)
        embedding = self.param(
            "embedding", nn.initializers.normal(cfg.d_model**-0.5), (cfg.vocab_size, cfg.d_model), cfg.param_dtype
        )
        x = keep_split(jnp.take(embedding, tokens_NxGxL, axis=0).astype(cfg.dtype))
        keys, values = [], []
        for i in range(cfg.num_layers):
            layer = f"layer_{i}"
            h = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name=f"{layer}_attention_norm")(x)
            y, (k, v) = attention(cfg, name=f"{layer}_attention")(
                h,
                positions_NxGxL,
                own_mask,
                None if cache is None else (cache.keys[i], cache.values[i]),
                cache_index,
                None if prefix is None else (prefix.keys[i], prefix.values[i]),
                prefix_mask,
            )
            x = keep_split(x + y)
            h = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name=f"{layer}_mlp_norm")(x)
            x = keep_split(x + mlp(cfg, name=f"{layer}_mlp")(h))
            keys.append(k)
            values.append(v)
        if last_only:
            x = x[:, :, -1:]
        x = RMSNorm(cfg.norm_epsilon, cfg.param_dtype, name="final_norm")(x)
        if not cfg.tie_embeddings:  # made here, beside the embedding; used by Policy.unembed
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.param("head", init, (cfg.d_model, cfg.vocab_size), cfg.param_dtype)
        return x, KeyValues(tuple(keys), tuple(values))


@dataclasses.dataclass(frozen=True)
class Policy:
    """The decoder as pure functions of `params`; hashable."""

    config: TransformerConfig

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters in `param_dtype`."""
        tokens = jnp.zeros((1, 1, 1), jnp.int32)
        return Transformer(self.config).init(key, tokens, tokens, jnp.ones((1, 1, 1, 1), bool))["params"]

    def _run(self, params, *args, **kwargs):
        return Transformer(self.config).apply({"params": params}, *args, **kwargs)

    def unembed(self, params: PyTree, hidden: Array) -> jax.Array:
        """Logits [..., V] of hidden states [..., E], float32 or better."""
        head = params["embedding"].T if self.config.tie_embeddings else params["head"]
        rows = hidden.reshape(-1, hidden.shape[-1])
        dtype = self.config.dtype
        logits = jnp.matmul(rows, head.astype(dtype), preferred_element_type=at_least_float32(dtype))
        return logits.reshape(*hidden.shape[:-1], head.shape[-1])

    def apply(self, params: PyTree, tokens_BxT: Array) -> jax.Array:
        """Logits [B, T, V] of plain sequences: causal, no padding; position t predicts token t + 1."""
        length = tokens_BxT.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length), tokens_BxT.shape)
        causal = jnp.tril(jnp.ones((length, length), bool))
        hidden, _ = self._run(params, tokens_BxT[:, None], positions[:, None], causal[None, None])
        return self.unembed(params, hidden[:, 0])

    def prefill(self, params: PyTree, tokens_NxP: Array, mask_NxP: Array) -> tuple[jax.Array, KeyValues]:
        """Encodes left-padded prompts: hidden states [N, E] at their last token, and the KeyValues to share."""
        length = tokens_NxP.shape[1]
        positions = jnp.maximum(jnp.cumsum(mask_NxP, axis=-1) - 1, 0)
        causal = jnp.tril(jnp.ones((length, length), bool))
        visible = (causal[None] & mask_NxP[:, None, :])[:, None]
        hidden, prefix = self._run(params, tokens_NxP[:, None], positions[:, None], visible, last_only=True)
        return hidden[:, 0, 0], prefix

    def empty_cache(self, num_prompts: int, group_size: int, length: int) -> KeyValues:
        """KeyValues of zeros for `length` response positions."""
        cfg = self.config
        shape = (num_prompts, group_size, cfg.num_kv_heads, length, cfg.head_dim)
        zeros = tuple(jnp.zeros(shape, cfg.dtype) for _ in range(cfg.num_layers))
        return KeyValues(zeros, zeros)

    def decode(
        self, params: PyTree, tokens_NxG: Array, index: Array, cache: KeyValues, prefix: KeyValues, prefix_mask_NxP
    ) -> tuple[jax.Array, KeyValues]:
        """One token for every response: hidden states [N, G, E] at response position `index`, and the new cache."""
        positions = jnp.broadcast_to(jnp.sum(prefix_mask_NxP, axis=-1)[:, None] + index, tokens_NxG.shape)
        visible = (jnp.arange(cache.keys[0].shape[3]) <= index)[None, None, None]
        hidden, cache = self._run(
            params, tokens_NxG[..., None], positions[..., None], visible, cache, index, prefix, prefix_mask_NxP
        )
        return hidden[:, :, 0], cache

    def response_hidden(
        self, params: PyTree, prompt_tokens_NxP: Array, prompt_mask_NxP: Array, response_tokens_NxGxR: Array
    ) -> jax.Array:
        """Hidden states [N, G, R, E] that predict each response token, each prompt encoded once for its group."""
        num_prompts, group_size, length = response_tokens_NxGxR.shape
        last_NxE, prefix = self.prefill(params, prompt_tokens_NxP, prompt_mask_NxP)
        hidden = jnp.broadcast_to(last_NxE[:, None, None], (num_prompts, group_size, 1, last_NxE.shape[-1]))
        if length > 1:
            inputs = response_tokens_NxGxR[:, :, :-1]
            positions = jnp.sum(prompt_mask_NxP, axis=-1)[:, None, None] + jnp.arange(length - 1)[None, None]
            positions = jnp.broadcast_to(positions, inputs.shape)
            causal = jnp.tril(jnp.ones((length - 1, length - 1), bool))[None, None]
            rest, _ = self._run(params, inputs, positions, causal, prefix=prefix, prefix_mask=prompt_mask_NxP)
            hidden = jnp.concatenate([hidden, rest], axis=2)
        return hidden

    def response_logits(
        self, params: PyTree, prompt_tokens_NxP: Array, prompt_mask_NxP: Array, response_tokens_NxGxR: Array
    ) -> jax.Array:
        """Logits [N, G, R, V] that predict each response token; see `response_hidden`."""
        return self.unembed(
            params, self.response_hidden(params, prompt_tokens_NxP, prompt_mask_NxP, response_tokens_NxGxR)
        )
