"""The trainings of a paired-bias config, by name, and the check of the config."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.config.defaults import default_config, field_value
from staleness_grpo.errors import FieldError, require


def trainings(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each training, by the name of its folder."""
    configs = {}
    for max_lag, learning_rate in itertools.product(
        config.paired.max_lags, config.paired.learning_rates
    ):
        cell = config.copy_and_resolve_references()
        with cell.unlocked():
            del cell.paired
        cell.lag.max_lag, cell.optimizer.learning_rate = max_lag, learning_rate
        configs[f"S{max_lag}-eta{short(learning_rate)}"] = cell
    return configs


def short(learning_rate: float) -> str:
    """Returns the learning rate in as few digits as tell it from any other."""
    text = f"{learning_rate:g}"
    return text if float(text) == learning_rate else repr(learning_rate)


def validate(config: ConfigDict) -> None:
    """Refuses what cannot be trained or compared.

    Raises:
      FieldError: names the first field found wrong, with its value.
    """
    _check_values(
        config, "max_lags", "lag.max_lag", (int,), lambda lag: lag >= 0, "whole numbers >= 0"
    )
    _check_values(
        config,
        "learning_rates",
        "optimizer.learning_rate",
        (int, float),
        lambda rate: 0 < rate < math.inf,
        "numbers > 0",
    )
    every = config.metrics.paired_every
    hint = "nothing would be compared: give a number of learner steps"
    require(bool(every), "metrics.paired_every", hint, every)
    hint = (
        "no step of the longest lag would be compared: "
        "give more than max_lags + metrics.paired_every"
    )
    require(config.steps > max(config.paired.max_lags) + every, "steps", hint, config.steps)
    schedule = config.lag.schedule
    hint = "trainings are told apart by their lag: give constant"
    require(schedule == "constant", "lag.schedule", hint, schedule)
    for cell in trainings(config).values():
        cli.validate_on_this_machine(cell)


def _check_values(
    config: ConfigDict,
    name: str,
    trained_field: str,
    kinds: tuple[type, ...],
    accepts: Callable[[Any], bool],
    expected: str,
) -> None:
    """Refuses values of one axis of the grid that no training can have. Raises FieldError.

    Args:
      config: the whole config.
      name: the axis, a field of `config.paired`.
      trained_field: the field that each training gets from the axis. The config may set it only to
        a value of the axis.
      kinds: types of a value.
      accepts: says whether a training can have a value.
      expected: what the values must be, in words.
    """
    values = config.paired.get(name)
    sound = isinstance(values, (tuple, list)) and all(
        isinstance(value, kinds) and not isinstance(value, bool) and accepts(value)
        for value in values
    )
    if not sound or not values or len(set(values)) < len(values):
        hint = f"give one value or more, each once: {expected}"
        raise FieldError(f"paired.{name}", hint, values)
    value = field_value(config, trained_field)
    if value not in (field_value(default_config(), trained_field), *values):
        hint = f"it is that of no training: leave it out, and give paired.{name}"
        raise FieldError(trained_field, hint, value)
