"""Times a whole learner step and its parts, and relates them to the machine's peak.

    python -m experiments.benchmark --workdir=DIR [--preset=llama_1b]

A preset is a config: --preset=NAME stands for --config=experiments/configs/benchmark_NAME.py. Times
are medians over the config's steps, and all ratios are between numbers of one run. The steps are
those of the training loop itself, with a clock at the end of each part. The responses have fixed
length, so that every step is the same work. Peaks are those of all devices of the mesh together.
"""

import pathlib
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError

WARM_UP_STEPS = 5
# The parts of a learner step on the host, as the training loop names them. The other parts are
# "sampling" and "update".
HOST_PARTS = ("prompts", "buffer", "records")
LAST_PART = "records"
# Settings that the benchmark needs. With others the summary would describe a different step.
REQUIRED = {
    "updates_per_batch": (1, "a timed step samples a batch and learns from it once"),
    "lag.max_lag": (0, "batches are learned from at once"),
    "warm_start.steps": (0, "random tokens have no corpus"),
}


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run, or whose steps are not those that the benchmark times.

    Raises:
      FieldError: naming the first field found wrong, with its value.
    """
    import jax

    from experiments.performance.random_tokens import validate_for

    for field, (value, reason) in REQUIRED.items():
        if field_value(config, field) != value:
            raise FieldError(field, f"{reason}: give {value}", field_value(config, field))
    validate_for(config, jax.device_count())


class Stopwatch:
    """Clocks the parts of each learner step; it waits for the devices at the end of each part."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.steps: list[dict[str, float]] = [{}]  # seconds by part, for each step

    def __call__(self, part: str, arrays: Any) -> None:
        """Adds the time since the last call to a part that has just ended."""
        import jax

        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + now - self._last
        self._last = now
        if part == LAST_PART:
            self.steps.append({})


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Trains WARM_UP_STEPS and then `config.steps` learner steps under a stopwatch, and sums up.

    The training writes its records to metrics.jsonl, as a part of each step.
    """
    import numpy as np

    from experiments.performance import machine
    from experiments.performance.random_tokens import RandomTokens
    from staleness_grpo.runtime import mesh as mesh_lib
    from staleness_grpo.runtime.records import Appender
    from staleness_grpo.training.loop import train
    from staleness_grpo.training.run import build_run

    task = RandomTokens(**config.benchmark)
    longer = config.copy_and_resolve_references()
    longer.steps = config.steps + WARM_UP_STEPS
    run, stopwatch = build_run(longer, task), Stopwatch()
    run.watch_with(stopwatch)
    with Appender(workdir / "metrics.jsonl", num_kept=0) as records:
        for record in train(run):
            records.append(record)
    timed = stopwatch.steps[WARM_UP_STEPS : WARM_UP_STEPS + config.steps]
    whole = np.array([sum(step.values()) for step in timed])
    step_seconds = np.median(whole)
    sampling = np.median([step["sampling"] for step in timed])
    update = np.median([step["update"] for step in timed])
    host = np.median([sum(step[part] for part in HOST_PARTS) for step in timed])

    peak = machine.matmul_peak(run.mesh, config.policy.dtype)
    bandwidth = machine.memory_bandwidth(run.mesh)
    policy_config, group_size = run.programs.policy.config, config.group_size
    forward = machine.matmul_flops(policy_config, task, config.num_prompts, group_size)
    num_responses = config.num_prompts * group_size
    sampled = num_responses * task.max_response_length / sampling
    responses_per_copy = num_responses // mesh_lib.batch_shards(run.mesh)
    bound = bandwidth / machine.bytes_per_sampled_token(
        policy_config, task, group_size, responses_per_copy
    )
    # A backward pass counts as two forward passes, so that an update is three of them.
    return {
        "step_seconds": step_seconds,
        "step_seconds_quartiles": np.quantile(whole, [0.25, 0.75]),
        "sampling_seconds": sampling,
        "update_seconds": update,
        "host_seconds": host,
        "host_share": host / step_seconds,
        "sampling_share": sampling / step_seconds,
        "update_share": update / step_seconds,
        "peak_flops": peak,
        "peak_share_of_update": 3 * forward / update / peak,
        "peak_share_of_sampling": forward / sampling / peak,
        "memory_bandwidth": bandwidth,
        "sampled_tokens_per_second": sampled,
        "bandwidth_bound_share_of_sampling": sampled / bound,
        "peak_share_of_step": 4 * forward / step_seconds / peak,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures and writes summary.json."""
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import plain, write_json

    write_run_files(workdir, config)
    summary = plain(measure(config, workdir)) | {"claims": []}
    write_json(workdir / SUMMARY, summary)
    for name, value in summary.items():
        print(f"{name:28s} {value}")


def command() -> None:
    """Runs the benchmark from the command line."""
    presets = cli.ROOT / "experiments" / "configs"
    sys.argv = [
        f"--config={presets}/benchmark_{word[9:]}.py" if word[:9] == "--preset=" else word
        for word in sys.argv
    ]
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/benchmark.py",
        validate=validate,
        mesh_may_differ=False,
    )
