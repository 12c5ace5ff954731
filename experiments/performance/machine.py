"""Measures the peak speeds of the machine, and counts the work of a learner step.

Peaks are sums over all devices of a mesh. Work is counted from the shapes of the policy and of the
batch.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.performance.random_tokens import RandomTokens
from staleness_grpo.policy.architecture import TransformerConfig

# Rows and columns of the square matrix that each device multiplies to measure its peak speed.
PEAK_SIZE = {"cpu": 2048}
ACCELERATOR_PEAK_SIZE = 8192
# Bytes of the array that each device scales to measure its memory bandwidth.
COPY_BYTES = 2**28


def fastest(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> float:
    """Calls the function 10 times; returns the seconds of the fastest call."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function(argument).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(mesh: Mesh, dtype: str) -> float:
    """Measures the FLOP/s of matrix products of this dtype, summed over the devices of the mesh.

    All devices multiply at the same time, each its own matrix. The fastest of 10 calls is used.
    """
    split, size = _split_over(mesh), PEAK_SIZE.get(jax.default_backend(), ACCELERATOR_PEAK_SIZE)
    make_matrices = jax.jit(
        lambda: jax.random.normal(jax.random.key(0), (mesh.size * size, size), dtype),
        out_shardings=NamedSharding(mesh, split),
    )
    product = jax.jit(jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=split, out_specs=split))
    return mesh.size * 2 * size**3 / fastest(product, make_matrices())


def memory_bandwidth(mesh: Mesh) -> float:
    """Measures the memory bandwidth in bytes/s, summed over the devices of the mesh.

    All devices read, scale and write at the same time, each its own array. The bytes read and the
    bytes written are both counted. The fastest of 10 calls is used.
    """
    make_arrays = jax.jit(
        lambda: jnp.ones(mesh.size * COPY_BYTES // 4, jnp.float32),
        out_shardings=NamedSharding(mesh, _split_over(mesh)),
    )
    return mesh.size * 2 * COPY_BYTES / fastest(jax.jit(lambda x: 2 * x), make_arrays())


def _split_over(mesh: Mesh) -> PartitionSpec:
    """Returns the partition that splits the first axis over all devices."""
    return PartitionSpec(mesh.axis_names)


def layer_weights(policy_config: TransformerConfig) -> int:
    """Returns the number of weights in a layer's projections.

    Each weight costs one multiply-add per token.
    """
    shape = policy_config
    attention = shape.d_model * shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    return attention + 3 * shape.d_model * shape.d_ff


def head_weights(policy_config: TransformerConfig) -> int:
    """Returns the number of weights of the unembedding.

    Each weight costs one multiply-add per position with logits.
    """
    return policy_config.d_model * policy_config.vocab_size


def matmul_flops(
    policy_config: TransformerConfig, task: RandomTokens, num_prompts: int, group_size: int
) -> int:
    """Returns the FLOPs of a batch in the projections and the head, two per multiply-add.

    The number is the same for sampling and for the forward pass of an update.

    - Attention scores are not counted.
    - The layers process a prompt once for its group, and all tokens of a response except the last.
    - The head computes logits at R positions per response. The first is the prompt's last position.
    """
    length = task.max_response_length
    layer_positions = num_prompts * (task.prompt_length + group_size * (length - 1))
    head_positions = num_prompts * group_size * length
    weights = policy_config.num_layers * layer_weights(policy_config)
    return 2 * (weights * layer_positions + head_weights(policy_config) * head_positions)


def bytes_per_sampled_token(
    policy_config: TransformerConfig,
    task: RandomTokens,
    group_size: int,
    responses_per_copy: int,
) -> float:
    """Returns a lower bound of the bytes that sampling reads per token.

    The bound counts two things:

    - The weights. One read of the weights serves all responses that are sampled together.
    - The keys and values of earlier positions. On average these are half of the positions. The G
      responses of a group share one read of the prompt's keys and values.

    Args:
      policy_config: the shape of the policy.
      task: gives the lengths of prompts and responses.
      group_size: G, responses per prompt.
      responses_per_copy: responses that are sampled with one copy of the weights. Several devices
        together may hold one copy.
    """
    shape = policy_config
    weights = shape.num_layers * layer_weights(shape) + head_weights(shape)
    cached_positions = task.prompt_length / 2 / group_size + task.max_response_length / 2
    keys_and_values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * cached_positions
    return jnp.dtype(shape.dtype).itemsize * (weights / responses_per_copy + keys_and_values)
