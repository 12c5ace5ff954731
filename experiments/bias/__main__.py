"""Measures the bias of stale rollouts, exactly up to rounding, for each lag and learning rate.

    python -m experiments.bias --workdir=DIR [--config=experiments/configs/bias.py] \\
        [--config.num_draws=4 ...]

Runs GRPO with lag on enumerable problems. There is one run for every combination of lag, learning
rate, optimizer and schedule, with exact and with sampled gradients. At every learner step the bias
||H(theta_t, theta_{t-tau}) - H(theta_t, theta_t)|| is known exactly.

Writes into the workdir:

- cells.jsonl: one line per run.
- identities.json: measurements at fixed policies.
- summary.json and the figures.

A second call does not repeat the measurements that are finished.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.bias.axes import NUM_THREADS
from experiments.bias.validation import validate
from experiments.common import cli, devices


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures the cells that have no record yet, then writes the summary of all cells."""
    import jax

    # The bias is the small difference of two nearly equal gradients, so it needs float64.
    jax.config.update("jax_enable_x64", True)
    from experiments.bias.analysis import summarize
    from experiments.bias.measure import measure
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    measure(config, workdir)
    write_json(workdir / SUMMARY, summarize(config, workdir))


def make_threads_devices(config: ConfigDict) -> None:
    """Makes a CPU device for each thread that measures."""
    del config
    devices.make_for_threads(NUM_THREADS)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir; returns the paths of the PNGs."""
    from experiments.bias import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(
        main,
        draw,
        default_config="experiments/configs/bias.py",
        validate=validate,
        prepare=make_threads_devices,
    )
