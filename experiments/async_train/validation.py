"""Checks that a config can be trained with a generator on devices of its own."""

import jax
from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.errors import FieldError, require
from staleness_grpo.staleness.admission import FINISH, check_asynchronous
from staleness_grpo.training.asynchronous import num_devices

DEFAULTS = {"admission": "bounded", "generator_devices": 0, "in_flight": FINISH, "look_every": 8}


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run. Raises FieldError."""
    _check_types(config)
    cli.validate_on_this_machine(config)
    try:
        check_asynchronous(config.asynchronous.to_dict(), config.lag.max_lag)
    except FieldError as error:
        raise error.below("asynchronous") from error
    lag = config.lag
    hint = "the timing of the run decides its lags: leave it at"
    require(lag.schedule == "constant", "lag.schedule", f"{hint} constant", lag.schedule)
    require(lag.start == "initial_policy", "lag.start", f"{hint} initial_policy", lag.start)
    hint = "an asynchronous run makes one update per batch: give 1"
    require(config.updates_per_batch == 1, "updates_per_batch", hint)
    hint = "asynchronous.generator_devices says how many devices sample: leave it unset"
    require(config.sampler.devices is None, "sampler.devices", hint)
    learner, generator = num_devices(config)
    found = jax.device_count()
    reason = f"learner and generator need {learner} + {generator} devices, but there are {found}"
    hint = f"{reason}: on CPUs unset JAX_NUM_CPU_DEVICES, or make the number smaller"
    require(learner + generator <= found, "asynchronous.generator_devices", hint)
    at_once = config.sampler.batch_prompts
    at_once = config.num_prompts if at_once is None else at_once
    hint = f"the generator's devices must split {at_once} groups evenly: give 0, or a divisor"
    is_split = generator == learner or at_once % generator == 0
    require(is_split, "asynchronous.generator_devices", hint)


def _check_types(config: ConfigDict) -> None:
    """Refuses fields of `asynchronous` that are missing or have a wrong type."""
    for name, default in DEFAULTS.items():
        value = config.asynchronous.get(name)
        hint = f"give a value of type {type(default).__name__}, as in {default}"
        require(type(value) is type(default), f"asynchronous.{name}", hint, value)
