"""Refuses configs of trainings in simulated pipelines that cannot be run."""

import math
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.pipeline.validation import check_grid
from staleness_grpo.errors import FieldError, require
from staleness_grpo.pipeline.cluster import DRAIN, FINISH


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first field whose value cannot be used."""
    cli.validate_on_this_machine(config)
    clock = config.clock
    try:
        check_grid(clock)
    except FieldError as error:
        raise error.below("clock") from error
    require(len(clock.limits) == 1, "clock.limits", "give one value", clock.limits)
    is_time = math.isfinite(clock.seconds) and clock.seconds > 0
    require(is_time, "clock.seconds", "give a finite number > 0", clock.seconds)
    _check_training(config)


def _check_training(config: ConfigDict) -> None:
    """Refuses a training that does not go with its cluster."""
    cluster = config.clock.cluster
    for training, simulated in (("num_prompts", "num_groups"), ("group_size", "group_size")):
        hint = f"the training has {training}={config[training]}: give the same number"
        agrees = cluster[simulated] == config[training]
        require(agrees, f"clock.cluster.{simulated}", hint, cluster[simulated])
    in_flight = cluster.in_flight
    hint = f"a response here has one policy version: give {FINISH} or {DRAIN}"
    require(in_flight in (FINISH, DRAIN), "clock.cluster.in_flight", hint, in_flight)
    needed: dict[str, Any] = {
        "sampler.batch_prompts": (config.sampler.batch_prompts, 1),
        "updates_per_batch": (config.updates_per_batch, 1),
        "lag.schedule": (config.lag.schedule, "constant"),
        "metrics.parameter_drift": (config.metrics.parameter_drift, False),
    }
    for name, (value, only) in needed.items():
        require(value == only, name, f"the simulation decides what is trained: give {only}", value)
    hint = "the rewards by time are those of evaluations: give a number >= 1"
    require(config.eval_every >= 1, "eval_every", hint, config.eval_every)
