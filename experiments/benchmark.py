"""How long a whole learner step takes, where the time goes, and what share of the machine's peak it reaches.

    python -m experiments.benchmark --workdir=DIR [--preset=llama_1b]

A preset is a config: --preset=NAME stands for --config=experiments/configs/benchmark_NAME.py.
Times are medians over the config's steps, all ratios are between numbers of one run. The responses have fixed
length, so that every step is the same work. Peaks are those of all devices of the mesh together.
"""

import dataclasses
import json
import pathlib
import sys
import time
from typing import IO

from ml_collections import ConfigDict

from experiments import cli
from staleness_grpo import config as config_lib
from staleness_grpo import validation
from staleness_grpo.config import ConfigError

WARM_UP_STEPS = 5
PEAK_SIZE = {"cpu": 2048}  # rows and columns of each device's matrix product, whose speed counts as the peak
ACCELERATOR_PEAK_SIZE = 8192
COPY_BYTES = 2**28  # of each device's array, whose scaling counts as the memory bandwidth
# What a summary's figures are of; anything else would be another step than the one that is timed.
FIXED = {
    "updates_per_batch": (1, "a step that is timed is a batch sampled and learned from once"),
    "lag.max_lag": (0, "batches are learned from at once"),
    "warm_start.steps": (0, "random tokens have no corpus"),
}


@dataclasses.dataclass(frozen=True)
class RandomTokens:
    """A Task of random prompts, of unequal length, and responses of fixed length with rewards that vary."""

    vocab_size: int
    prompt_length: int
    max_response_length: int
    pad_token = 0
    end_token = None
    num_prompts = 1 << 20

    def prompts(self, index_N):
        """Tokens hashed from the index."""
        import numpy as np

        from staleness_grpo.hashing import uniform_integers
        from staleness_grpo.types import Prompts

        positions = np.arange(self.prompt_length)
        length_N = 1 + uniform_integers(self.prompt_length, 0, index_N)
        mask_NxP = positions >= self.prompt_length - length_N[:, None]
        tokens_NxP = uniform_integers(self.vocab_size, 1, np.asarray(index_N)[:, None], positions)
        return Prompts(np.where(mask_NxP, tokens_NxP, 0).astype(np.int32), mask_NxP, np.asarray(index_N, np.int32))

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        """Share of tokens below V / 2."""
        return (tokens_NxGxR < self.vocab_size // 2).mean(axis=-1, dtype="float32")


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run, or whose steps are not those that are timed. Raises ConfigError."""
    import jax

    for flag, (value, reason) in FIXED.items():
        if config_lib.field(config, flag) != value:
            raise ConfigError(flag, config_lib.field(config, flag), f"{reason}: give {value}")
    validate_for(config, jax.device_count())


def validate_for(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """`validation.validate`, with the benchmark's random tokens in place of a task's. Raises ConfigError."""
    from staleness_grpo.policy.configured import make_policy

    validation.validate_without_task(config, num_devices, platform)
    for name in (field.name for field in dataclasses.fields(RandomTokens)):
        size = config.benchmark.get(name)
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"benchmark.{name}", size, "give a whole number >= 1")
    vocab_size, chunks = config.benchmark.vocab_size, config.policy.vocab_chunks
    if config.policy.checkpoint is not None:
        known = make_policy(config.policy, vocab_size).config.vocab_size
        if known != vocab_size:
            raise ConfigError("benchmark.vocab_size", vocab_size, f"policy.checkpoint has {known} tokens: give {known}")
    if vocab_size % chunks:
        raise ConfigError("policy.vocab_chunks", chunks, f"give a divisor of benchmark.vocab_size={vocab_size}")


def fastest(function, argument) -> float:
    """Seconds of the fastest of 10 calls."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function(argument).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(mesh, dtype: str) -> float:
    """FLOP/s of all devices of the mesh: each multiplies a matrix of this dtype, at once; the fastest of 10 times."""
    import jax
    from jax.sharding import NamedSharding

    split, size = _split_over(mesh), PEAK_SIZE.get(jax.default_backend(), ACCELERATOR_PEAK_SIZE)
    make = jax.jit(
        lambda: jax.random.normal(jax.random.key(0), (mesh.size * size, size), dtype),
        out_shardings=NamedSharding(mesh, split),
    )
    product = jax.jit(jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=split, out_specs=split))
    return mesh.size * 2 * size**3 / fastest(product, make())


def memory_bandwidth(mesh) -> float:
    """Bytes/s of all devices of the mesh: each reads, scales and writes an array, at once; the fastest of 10 times."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    sharding = NamedSharding(mesh, _split_over(mesh))
    make = jax.jit(lambda: jnp.ones(mesh.size * COPY_BYTES // 4, jnp.float32), out_shardings=sharding)
    return mesh.size * 2 * COPY_BYTES / fastest(jax.jit(lambda x: 2 * x), make())


def _split_over(mesh):
    """The first axis over all devices."""
    from jax.sharding import PartitionSpec

    return PartitionSpec(mesh.axis_names)


def bytes_per_sampled_token(policy_config, task: RandomTokens, group_size: int, responses_per_copy: int) -> float:
    """What sampling must read at least for each token: weights, shared by a batch, and keys and values before it.

    Args:
      responses_per_copy: of the batch, on the devices that hold one copy of the weights between them.
    """
    import jax.numpy as jnp

    cfg = policy_config
    weights = cfg.num_layers * layer_weights(cfg) + head_weights(cfg)
    cached = task.prompt_length / 2 / group_size + task.max_response_length / 2  # on average; a group shares its prompt
    keys_and_values = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * cached
    return jnp.dtype(cfg.dtype).itemsize * (weights / responses_per_copy + keys_and_values)


def layer_weights(policy_config) -> int:
    """Of the projections of one layer: each is a multiply-add for a token."""
    cfg = policy_config
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
    return attention + 3 * cfg.d_model * cfg.d_ff


def head_weights(policy_config) -> int:
    """Of the unembedding."""
    return policy_config.d_model * policy_config.vocab_size


def matmul_flops(policy_config, task: RandomTokens, num_prompts: int, group_size: int) -> int:
    """Multiply-adds, times 2, of one batch through projections and head, without attention scores.

    So much is sampling, and so much is the forward pass of an update. The layers see a prompt once for its group, and
    every token of a response but its last; the head sees R positions of a response, the prompt's last among them.
    """
    cfg, length = policy_config, task.max_response_length
    through_layers = num_prompts * (task.prompt_length + group_size * (length - 1))
    through_head = num_prompts * group_size * length
    return 2 * (cfg.num_layers * layer_weights(cfg) * through_layers + head_weights(cfg) * through_head)


def measure(config: ConfigDict, records: IO[str]) -> dict:
    """Runs `config.steps` learner steps of `train.py`'s loop with a clock around each part, and sums up."""
    import jax
    import numpy as np

    from staleness_grpo import mesh as mesh_lib
    from staleness_grpo import train
    from staleness_grpo.metrics import plain
    from staleness_grpo.rollouts import TRAINING
    from staleness_grpo.staleness.ring_buffer import RingBuffer

    task = RandomTokens(**config.benchmark)
    run = train.build(config, task)
    generator, buffer = run.generator, RingBuffer(0, config.num_prompts)
    slots = np.arange(config.num_prompts)
    clocks = []
    for step in range(-WARM_UP_STEPS, config.steps):
        index = step + WARM_UP_STEPS
        steps = np.full_like(slots, index)
        clock = [time.perf_counter()]
        prompts = generator.prompts(TRAINING, steps, slots)
        clock.append(time.perf_counter())
        responses = generator.sample(run.state.params, prompts, TRAINING, steps, slots, config.group_size)
        jax.block_until_ready(responses)
        clock.append(time.perf_counter())
        buffer.push(steps, slots, index, generator.score(prompts, responses, index))
        rollout, _ = buffer.pop(index, steps)
        batch = jax.block_until_ready(jax.device_put(rollout, mesh_lib.batch_sharding(run.mesh)))
        clock.append(time.perf_counter())
        with jax.set_mesh(run.mesh):  # as train.py: what keeps arrays split over devices reads the mesh in use
            run.state, metrics = jax.block_until_ready(run.update(run.state, batch))
        clock.append(time.perf_counter())
        records.write(json.dumps(plain(train.finish({"step": index}, metrics))) + "\n")
        clock.append(time.perf_counter())
        if step >= 0:
            clocks.append(np.diff(clock))
    parts = np.array(clocks)  # prompts, sampling, buffer and transfers, update, logging
    step_seconds = np.median(parts.sum(axis=1))
    sampling, update = np.median(parts[:, 1]), np.median(parts[:, 3])
    host = np.median(parts[:, [0, 2, 4]].sum(axis=1))
    peak, bandwidth = matmul_peak(run.mesh, config.policy.dtype), memory_bandwidth(run.mesh)

    policy_config, num_responses = generator.policy.config, config.num_prompts * config.group_size
    forward = matmul_flops(policy_config, task, config.num_prompts, config.group_size)
    sampled = num_responses * task.max_response_length / sampling
    responses_per_copy = num_responses // mesh_lib.batch_shards(run.mesh)
    bound = bandwidth / bytes_per_sampled_token(policy_config, task, config.group_size, responses_per_copy)
    return {
        "step_seconds": step_seconds,
        "step_seconds_quartiles": np.quantile(parts.sum(axis=1), [0.25, 0.75]),
        "sampling_seconds": sampling,
        "update_seconds": update,
        "host_seconds": host,
        "host_share": host / step_seconds,
        "sampling_share": sampling / step_seconds,
        "update_share": update / step_seconds,
        "peak_flops": peak,
        "peak_share_of_update": 3 * forward / update / peak,  # a backward pass is two forward passes
        "peak_share_of_sampling": forward / sampling / peak,
        "memory_bandwidth": bandwidth,
        "sampled_tokens_per_second": sampled,
        "bandwidth_bound_share_of_sampling": sampled / bound,
        "peak_share_of_step": 4 * forward / step_seconds / peak,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures and writes summary.json; a finished workdir is left as it is."""
    from staleness_grpo import metrics

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    metrics.write_run_files(workdir, config)
    with (workdir / "metrics.jsonl").open("w") as records:
        summary = metrics.plain(measure(config, records))
    metrics.write_json(workdir / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name:28s} {value}")


if __name__ == "__main__":
    presets = cli.ROOT / "experiments" / "configs"
    sys.argv = [f"--config={presets}/benchmark_{arg[9:]}.py" if arg[:9] == "--preset=" else arg for arg in sys.argv]
    cli.run(main, default_config="experiments/configs/benchmark.py", validate=validate, mesh_may_differ=False)
