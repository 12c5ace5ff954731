"""Measures the peaks of the machine, and counts the work of a learner step.

Peaks are those of all devices of a mesh together. Work is counted from the shapes of the policy.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.performance.random_tokens import RandomTokens
from staleness_grpo.policy.architecture import TransformerConfig

# Rows and columns of the matrix that each device multiplies. Its speed counts as the device's peak.
PEAK_SIZE = {"cpu": 2048}
ACCELERATOR_PEAK_SIZE = 8192
# Bytes of the array that each device scales. That speed counts as its memory bandwidth.
COPY_BYTES = 2**28


def fastest(function: Callable[[jax.Array], jax.Array], argument: jax.Array) -> float:
    """Returns the seconds of the fastest of 10 calls."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function(argument).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(mesh: Mesh, dtype: str) -> float:
    """Measures the FLOP/s of all devices of the mesh, in matrix products of this dtype.

    All devices multiply at once, each a matrix of its own. The fastest of 10 times counts.
    """
    split, size = _split_over(mesh), PEAK_SIZE.get(jax.default_backend(), ACCELERATOR_PEAK_SIZE)
    make = jax.jit(
        lambda: jax.random.normal(jax.random.key(0), (mesh.size * size, size), dtype),
        out_shardings=NamedSharding(mesh, split),
    )
    product = jax.jit(jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=split, out_specs=split))
    return mesh.size * 2 * size**3 / fastest(product, make())


def memory_bandwidth(mesh: Mesh) -> float:
    """Measures the bytes/s of all devices of the mesh, in reading, scaling and writing arrays.

    All devices work at once, each on an array of its own. The fastest of 10 times counts.
    """
    make = jax.jit(
        lambda: jnp.ones(mesh.size * COPY_BYTES // 4, jnp.float32),
        out_shardings=NamedSharding(mesh, _split_over(mesh)),
    )
    return mesh.size * 2 * COPY_BYTES / fastest(jax.jit(lambda x: 2 * x), make())


def _split_over(mesh: Mesh) -> PartitionSpec:
    """Returns the partition of the first axis over all devices."""
    return PartitionSpec(mesh.axis_names)


def layer_weights(policy_config: TransformerConfig) -> int:
    """Returns the weights in a layer's projections: each is a multiply-add for every token."""
    shape = policy_config
    attention = shape.d_model * shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    return attention + 3 * shape.d_model * shape.d_ff


def head_weights(policy_config: TransformerConfig) -> int:
    """Returns the weights of the unembedding: each is a multiply-add for every position."""
    return policy_config.d_model * policy_config.vocab_size


def matmul_flops(
    policy_config: TransformerConfig, task: RandomTokens, num_prompts: int, group_size: int
) -> int:
    """Returns the FLOPs of one batch through projections and head, two for each multiply-add.

    Sampling needs as many, and so does the forward pass of an update. Attention scores are left
    out. The layers see a prompt once for its group, and every token of a response but its last. The
    head sees R positions of a response, the prompt's last among them.
    """
    length = task.max_response_length
    through_layers = num_prompts * (task.prompt_length + group_size * (length - 1))
    through_head = num_prompts * group_size * length
    layers = policy_config.num_layers * layer_weights(policy_config)
    return 2 * (layers * through_layers + head_weights(policy_config) * through_head)


def bytes_per_sampled_token(
    policy_config: TransformerConfig,
    task: RandomTokens,
    group_size: int,
    responses_per_copy: int,
) -> float:
    """Returns the bytes that sampling must at least read for each token.

    They are the weights, which the responses of a batch share, and the keys and values of earlier
    positions: half of them on average, and those of a prompt once for its group.

    Args:
      policy_config: the shape of the policy.
      task: the shape of the batch, with `group_size` (G).
      responses_per_copy: the responses on the devices that hold one copy of the weights together.
    """
    shape = policy_config
    weights = shape.num_layers * layer_weights(shape) + head_weights(shape)
    cached = task.prompt_length / 2 / group_size + task.max_response_length / 2
    keys_and_values = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * cached
    return jnp.dtype(shape.dtype).itemsize * (weights / responses_per_copy + keys_and_values)
