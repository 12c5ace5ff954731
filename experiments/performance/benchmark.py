"""Times a whole learner step and its parts, and relates them to the machine's peak.

    python -m experiments.benchmark --workdir=DIR [--preset=llama_1b]
    python -m experiments.benchmark --scaling --workdir=DIR

--preset=NAME is short for --config=experiments/configs/benchmark_NAME.py. --scaling measures how
a step grows with each size of a training (`scaling.py`).

- The training loop itself runs, with a clock that reads the time at the end of each part of a step.
- Times are medians over the config's steps. All ratios are between numbers of the same run.
- Responses have a fixed length, so that every step does the same work.
- Peaks are sums over all devices of the mesh.
"""

import pathlib
import sys
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.training_only import refuse_training_only
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError

WARM_UP_STEPS = 5
# The parts of a learner step that run on the host, with the names that the training loop gives
# them. The other parts are "drift" (the copy of a version), "sampling" and "update".
HOST_PARTS = ("prompts", "buffer", "records")
LAST_PART = "records"
# Settings that the benchmark needs. With other settings the summary would describe another step.
REQUIRED_SETTINGS = {
    "updates_per_batch": (1, "a timed step learns once from each batch"),
    "lag.schedule": ("constant", "a timed step samples one batch"),
    "warm_start.steps": (0, "random tokens have no corpus for a warm start"),
}


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the config cannot be run, or its steps cannot be timed.

    Raises:
      FieldError: names the first field with a wrong value, and the value.
    """
    import jax

    from experiments.performance.random_tokens import validate_for

    check_settings(config)
    validate_for(config, jax.device_count())


def check_settings(config: ConfigDict) -> None:
    """Raises FieldError if a step of this config cannot be timed."""
    for field, (value, reason) in REQUIRED_SETTINGS.items():
        if field_value(config, field) != value:
            raise FieldError(field, f"{reason}: give {value}", field_value(config, field))
    refuse_training_only(config)


class Stopwatch:
    """Measures the seconds of each part of each learner step.

    At the end of a part it waits until the devices have finished.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.steps: list[dict[str, float]] = [{}]  # for each step: seconds by part

    def __call__(self, part: str, arrays: Any) -> None:
        """Adds the time since the last call to the part that has just ended."""
        import jax

        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + now - self._last
        self._last = now
        if part == LAST_PART:
            self.steps.append({})


def measure(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """Times `config.steps` learner steps of a training; returns the numbers of summary.json.

    WARM_UP_STEPS more steps run before and are not timed, nor are the last S steps, which sample no
    batch. Writing the records to metrics.jsonl is a part of each step.
    """
    import numpy as np

    from experiments.performance import machine
    from experiments.performance.random_tokens import RandomTokens
    from staleness_grpo.policy.configured import as_decoder
    from staleness_grpo.runtime import mesh as mesh_lib
    from staleness_grpo.runtime.records import Appender
    from staleness_grpo.training.loop import train
    from staleness_grpo.training.run import assemble_run

    task = RandomTokens(**config.benchmark)
    longer_config = config.copy_and_resolve_references()
    longer_config.steps = config.steps + WARM_UP_STEPS + config.lag.max_lag
    run, stopwatch = assemble_run(longer_config, task), Stopwatch()
    run.watch_with(stopwatch)
    with Appender(workdir / "metrics.jsonl", num_kept=0) as records:
        for record in train(run):
            records.append(record)
    timed_steps = stopwatch.steps[WARM_UP_STEPS : WARM_UP_STEPS + config.steps]
    seconds_by_step = np.array([sum(step.values()) for step in timed_steps])
    step_seconds = np.median(seconds_by_step)
    sampling = np.median([step["sampling"] for step in timed_steps])
    update = np.median([step["update"] for step in timed_steps])
    host = np.median([sum(step[part] for part in HOST_PARTS) for step in timed_steps])
    drift = np.median([step.get("drift", 0.0) for step in timed_steps])

    peak = machine.matmul_peak(run.mesh, config.policy.dtype)
    bandwidth = machine.memory_bandwidth(run.mesh)
    policy_config, group_size = as_decoder(run.programs.policy).config, config.group_size
    forward_flops = machine.matmul_flops(policy_config, task, config.num_prompts, group_size)
    num_responses = config.num_prompts * group_size
    tokens_per_second = num_responses * task.max_response_length / sampling
    responses_per_copy = num_responses // mesh_lib.batch_shards(run.generator.mesh)
    tokens_per_second_bound = bandwidth / machine.bytes_per_sampled_token(
        policy_config, task, group_size, responses_per_copy
    )
    # A backward pass has twice the FLOPs of a forward pass. So an update has three times the FLOPs
    # of a forward pass, and a step, which samples too, four times.
    return {
        "step_seconds": step_seconds,
        "step_seconds_quartiles": np.quantile(seconds_by_step, [0.25, 0.75]),
        "sampling_seconds": sampling,
        "update_seconds": update,
        "host_seconds": host,
        "drift_copy_seconds": drift,
        "host_share": host / step_seconds,
        "sampling_share": sampling / step_seconds,
        "update_share": update / step_seconds,
        "peak_flops": peak,
        "peak_share_of_update": 3 * forward_flops / update / peak,
        "peak_share_of_sampling": forward_flops / sampling / peak,
        "memory_bandwidth": bandwidth,
        "sampled_tokens_per_second": tokens_per_second,
        "bandwidth_bound_share_of_sampling": tokens_per_second / tokens_per_second_bound,
        "peak_share_of_step": 4 * forward_flops / step_seconds / peak,
        "steps": config.steps,
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the benchmark, and writes summary.json."""
    from experiments.common.numbers import write_and_print
    from experiments.common.workdir import write_run_files

    write_run_files(workdir, config)
    write_and_print(measure(config, workdir), workdir)


def command() -> None:
    """Runs the benchmark from the command line, or the measurement of its growth."""
    if "--scaling" in sys.argv:
        from experiments.performance import scaling

        sys.argv.remove("--scaling")
        scaling.command()
        return
    configs = cli.ROOT / "experiments" / "configs"
    sys.argv = [
        f"--config={configs}/benchmark_{arg.removeprefix('--preset=')}.py"
        if arg.startswith("--preset=")
        else arg
        for arg in sys.argv
    ]
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/benchmark.py",
        validate=validate,
        mesh_may_differ=False,
    )
