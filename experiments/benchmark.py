"""How long a whole learner step takes, where the time goes, and what share of the machine's peak it reaches.

    python -m experiments.benchmark --workdir=DIR

Times are medians over the config's steps, all ratios are between numbers of one run. The responses have fixed
length, so that every step is the same work.
"""

import json
import pathlib
import time
from typing import IO

from ml_collections import ConfigDict

from experiments import cli

VOCAB_SIZE, PROMPT_LENGTH, RESPONSE_LENGTH = 512, 16, 32
WARM_UP_STEPS = 5
PEAK_SIZE = 2048  # rows and columns of the matrix product whose speed counts as the machine's peak


class RandomTokens:
    """A Task of random prompts, of unequal length, and responses of fixed length with rewards that vary."""

    vocab_size = VOCAB_SIZE
    prompt_length = PROMPT_LENGTH
    max_response_length = RESPONSE_LENGTH
    pad_token = 0
    end_token = None
    num_prompts = 1 << 20

    def prompts(self, index_N):
        """Tokens hashed from the index."""
        import numpy as np

        from staleness_grpo.hashing import uniform_integers
        from staleness_grpo.types import Prompts

        positions = np.arange(PROMPT_LENGTH)
        length_N = 1 + uniform_integers(PROMPT_LENGTH, 0, index_N)
        mask_NxP = positions >= PROMPT_LENGTH - length_N[:, None]
        tokens_NxP = uniform_integers(VOCAB_SIZE, 1, np.asarray(index_N)[:, None], positions)
        return Prompts(np.where(mask_NxP, tokens_NxP, 0).astype(np.int32), mask_NxP, np.asarray(index_N, np.int32))

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        """Share of tokens below V / 2."""
        return (tokens_NxGxR < VOCAB_SIZE // 2).mean(axis=-1, dtype="float32")


def matmul_peak() -> float:
    """FLOP/s of the fastest of 10 float32 matrix products."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * PEAK_SIZE**3 / min(times)


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

    run = train.build(config, RandomTokens())
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
    peak = matmul_peak()

    per_token = matmul_flops_per_token(generator.policy.config)
    tokens = config.num_prompts * (PROMPT_LENGTH + config.group_size * (RESPONSE_LENGTH - 1))
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
    cli.run(main, default_config="experiments/configs/benchmark.py")
