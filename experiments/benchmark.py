"""How long a whole learner step takes, where the time goes, and what share of the machine's peak it reaches.

    python -m experiments.benchmark --workdir=DIR [--preset=llama_1b]

A preset is a config: --preset=NAME stands for --config=experiments/configs/benchmark_NAME.py.
Times are medians over the config's steps, all ratios are between numbers of one run. The responses have fixed
length, so that every step is the same work.
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
from staleness_grpo.config import ConfigError

WARM_UP_STEPS = 5
PEAK_SIZE = {"cpu": 2048}  # rows and columns of the matrix product whose speed counts as the machine's peak
ACCELERATOR_PEAK_SIZE = 8192
COPY_BYTES = 2**28  # of the array whose scaling counts as the machine's memory bandwidth


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
    """Refuses a config that cannot be run. Raises ConfigError."""
    import jax

    validate_for(config, jax.device_count())


def validate_for(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """`config.validate`, with the vocabulary of the benchmark in place of a task's. Raises ConfigError."""
    general = config.copy_and_resolve_references()
    general.policy.vocab_chunks = 1
    config_lib.validate(general, num_devices, platform)
    vocab_size, chunks = config.benchmark.vocab_size, config.policy.vocab_chunks
    if chunks < 1 or vocab_size % chunks:
        raise ConfigError("policy.vocab_chunks", chunks, f"give a divisor of benchmark.vocab_size={vocab_size}")


def fastest(function, argument) -> float:
    """Seconds of the fastest of 10 calls."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        function(argument).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(dtype: str) -> float:
    """FLOP/s of the fastest of 10 matrix products of this dtype."""
    import jax

    size = PEAK_SIZE.get(jax.default_backend(), ACCELERATOR_PEAK_SIZE)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / fastest(jax.jit(lambda a: a @ a), a)


def memory_bandwidth() -> float:
    """Bytes/s read and written by the fastest of 10 scalings of a large array."""
    import jax
    import jax.numpy as jnp

    return 2 * COPY_BYTES / fastest(jax.jit(lambda x: 2 * x), jnp.ones(COPY_BYTES // 4, jnp.float32))


def bytes_per_sampled_token(policy_config, task: RandomTokens, num_responses: int) -> float:
    """What sampling must read at least for each token: the weights, shared by the batch, and its keys and values."""
    import jax.numpy as jnp

    cfg = policy_config
    itemsize = jnp.dtype(cfg.dtype).itemsize
    cached = task.prompt_length / 2 + task.max_response_length / 2  # positions on average; a group shares its prompt
    keys_and_values = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * cached
    return itemsize * (matmul_flops_per_token(cfg) / 2 / num_responses + keys_and_values)


def matmul_flops_per_token(policy_config) -> int:
    """Multiply-adds, times 2, of one token through the projections and the head, without attention scores."""
    cfg = policy_config
    attention = cfg.d_model * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads)
    return 2 * (cfg.num_layers * (attention + 3 * cfg.d_model * cfg.d_ff) + cfg.d_model * cfg.vocab_size)


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
        rollout, _ = buffer.pop(index, run.schedule.behavior_versions(index))
        batch = jax.block_until_ready(jax.device_put(rollout, mesh_lib.batch_sharding(run.mesh)))
        clock.append(time.perf_counter())
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
    peak, bandwidth = matmul_peak(config.policy.dtype), memory_bandwidth()

    per_token = matmul_flops_per_token(generator.policy.config)
    tokens = config.num_prompts * (task.prompt_length + config.group_size * (task.max_response_length - 1))
    num_responses = config.num_prompts * config.group_size
    sampled = num_responses * task.max_response_length / sampling
    bound = bandwidth / bytes_per_sampled_token(generator.policy.config, task, num_responses)
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
        "peak_share_of_update": 3 * per_token * tokens / update / peak,  # a backward pass is two forward passes
        "peak_share_of_sampling": per_token * tokens / sampling / peak,
        "memory_bandwidth": bandwidth,
        "sampled_tokens_per_second": sampled,
        "bandwidth_bound_share_of_sampling": sampled / bound,
        "peak_share_of_step": 4 * per_token * tokens / step_seconds / peak,
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
