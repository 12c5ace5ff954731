"""Defines the decoder's norms, linear maps and feed-forward layer."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.numerics import at_least_float32, leading_axes
from staleness_grpo.types import Array


class RMSNorm(nn.Module):
    """Computes x / rms(x) * scale. The statistics are computed in float32 or float64."""

    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(at_least_float32(x.dtype))
        normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        # The scale of every row is written as a product. So its gradient is a product, too, and no
        # sum over the rows, for which XLA on CPU walks through each column (docs/log/).
        ones = jnp.ones((math.prod(x.shape[:-1]), 1), x.dtype)
        scales = jnp.matmul(ones, scale.astype(x.dtype)[None], precision=jax.lax.Precision.HIGHEST)
        return normed.astype(x.dtype) * scales.reshape(x.shape)


class Projection(nn.Module):
    """Applies a linear map from the last `inputs` axes of x to new axes of sizes `features`."""

    features: tuple[int, ...]
    dtype: str
    param_dtype: str
    inputs: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        in_shape = x.shape[x.ndim - self.inputs :]
        num_in_axes = len(in_shape)
        init = nn.initializers.variance_scaling(
            1.0,
            "fan_in",
            "normal",
            in_axis=tuple(range(num_in_axes)),
            out_axis=tuple(range(num_in_axes, num_in_axes + len(self.features))),
        )
        shape = (*in_shape, *self.features)
        kernel = self.param("kernel", init, shape, self.param_dtype).astype(self.dtype)
        # The batch axes are flattened, so that this is one product of two matrices. With the batch
        # axes left in place, XLA on CPU transposes the activations for the weight gradient, and the
        # backward pass is slower (docs/log/).
        rows = x.reshape(-1, math.prod(in_shape))
        y = rows @ kernel.reshape(rows.shape[-1], -1)
        y = y.reshape(*x.shape[: x.ndim - self.inputs], *self.features)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.features, self.param_dtype)
            y = y + leading_axes(bias.astype(self.dtype), y.ndim)
        return y


class SwiGLU(nn.Module):
    """Computes down(silu(gate(x)) * up(x))."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.config
        project = functools.partial(Projection, dtype=cfg.dtype, param_dtype=cfg.param_dtype)
        gate = project((cfg.d_ff,), name="gate")(x)
        up = project((cfg.d_ff,), name="up")(x)
        return project((cfg.d_model,), name="down")(nn.silu(gate) * up)
