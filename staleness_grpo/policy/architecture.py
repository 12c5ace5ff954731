"""Defines the config of the decoder's architecture. The config checks its own fields."""

import dataclasses

from staleness_grpo.errors import require, require_at_least, require_choice, require_positive

# Which activations the backward pass recomputes, to save memory.
#   none: no activation is recomputed.
#   attention: the attention weights are recomputed. They cost little to compute, and without a
#     fused kernel they take more memory than any other activation.
#   blocks: every activation in a block is recomputed from the block's input.
REMAT = ("none", "attention", "blocks")

# Which implementation computes causal attention.
#   xla: plain matrix products and a softmax.
#   splash: Splash attention, a TPU kernel that keeps no attention weights in memory.
#   cudnn: cuDNN's attention, a kernel for NVIDIA GPUs that keeps no attention weights either.
ATTENTION = ("xla", "splash", "cudnn")
KERNEL_PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}  # for which a kernel is
# The dtypes that a kernel supports.
KERNEL_DTYPES = {"splash": ("float32", "bfloat16"), "cudnn": ("bfloat16",)}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Holds the constants of the 'llama3' rule, which stretches the rotary frequencies.

    The rule is defined by the Llama 3.1 model card and reference code.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Describes an architecture. The config is hashable, so it can be a static argument of jit.

    Raises:
      FieldError: the decoder does not support the value of a field, or two values together.
    """

    vocab_size: int  # V
    num_layers: int
    d_model: int  # E
    num_heads: int  # K * Q query heads
    num_kv_heads: int  # K
    head_dim: int  # H
    d_ff: int  # features of the feed-forward layer
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    dtype: str = "float32"  # of activations; scores, norms and logits have at least float32
    param_dtype: str = "float32"
    attention: str = "xla"  # one of ATTENTION; decoding always uses xla
    remat: str = "none"  # one of REMAT
    vocab_chunks: int = 1  # F; log-probabilities are computed chunk by chunk

    def __post_init__(self) -> None:
        fields = vars(self)
        sizes = ("num_layers", "d_model", "num_heads", "num_kv_heads", "d_ff", "vocab_chunks")
        require_at_least(fields, dict.fromkeys(sizes, 1) | {"head_dim": 2})
        require_positive(fields, ("rope_theta", "norm_epsilon"))
        require_choice(fields, "attention", ATTENTION)
        require_choice(fields, "remat", REMAT)
        hint = "rotary positions rotate pairs of features: give an even number"
        require(self.head_dim % 2 == 0, "head_dim", hint, self.head_dim)
        hint = f"give a divisor of num_heads={self.num_heads}"
        require(self.num_heads % self.num_kv_heads == 0, "num_kv_heads", hint, self.num_kv_heads)
        hint = f"give a divisor of the vocabulary {self.vocab_size}"
        require(self.vocab_size % self.vocab_chunks == 0, "vocab_chunks", hint, self.vocab_chunks)
        dtypes = KERNEL_DTYPES.get(self.attention, (self.dtype,))
        hint = (
            f"attention={self.attention} computes in {' or '.join(dtypes)}: choose one of these, "
            "or set attention=xla"
        )
        require(self.dtype in dtypes, "dtype", hint, self.dtype)
