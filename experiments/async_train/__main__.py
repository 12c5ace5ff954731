"""Trains one policy while other devices generate its rollouts, and records what the timing decided.

    python -m experiments.async_train --workdir=DIR [--config.lag.max_lag=8 ...]

A generator's thread and the learner run at the same time, on devices of their own. trace.jsonl has
the policy version of every group. `experiments.train` with this trace computes the same metrics and
parameters, to the byte: docs/asynchronous.md.

A call on an unfinished workdir continues from the newest checkpoint. Groups that were in flight are
generated again by the versions in the trace.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli

MOST_DEVICES = 1024  # that are simulated; more would take minutes to make


def prepare(config: ConfigDict) -> None:
    """Makes JAX show enough CPU devices for learner and generator, before it looks for devices.

    The variable JAX_NUM_CPU_DEVICES decides, if it is set. Accelerators are not concerned.
    """
    import os

    import jax

    from staleness_grpo.training.asynchronous import num_devices

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        # What the config cannot mean is refused later, by `validate`, which asks for devices.
        count = min(max(sum(num_devices(config)), 1), MOST_DEVICES)
        jax.config.update("jax_num_cpu_devices", count)


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run. Raises FieldError."""
    from experiments.async_train.validation import validate as validate_asynchronous

    validate_asynchronous(config)


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains the remaining steps. Raises FieldError, FlagError or SystemExit, as `measure` does."""
    from experiments.async_train.measure import measure

    measure(config, workdir)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the curves of a finished training; returns the path of the PNG."""
    from experiments.train import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(
        main,
        draw,
        default_config="experiments/configs/async_train.py",
        validate=validate,
        prepare=prepare,
    )
