"""Lists the trainings of a paired-bias config, and checks the config."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.common import cli
from staleness_grpo.config.defaults import default_config, field_value
from staleness_grpo.errors import FieldError, require


@dataclasses.dataclass(frozen=True)
class Axis:
    """Describes an axis of the grid: a field of `config.paired`, and which values it may list."""

    name: str  # the field of `config.paired` that lists the values
    training_field: str  # the field of a training's config that is set to one of the values
    types: tuple[type, ...]  # the types of a value; bool is refused even if int is among them
    is_valid: Callable[[Any], bool]  # says whether a training accepts a value of these types
    expected: str  # what the values must be, in words

    def check(self, config: ConfigDict) -> None:
        """Checks the values that `config.paired` lists, and the config's own `training_field`.

        The config may set `training_field` itself, but only to one of the listed values.

        Raises:
          FieldError: if the list is empty or repeats a value, if a value is of no use to a
            training, or if no training would use the config's `training_field`.
        """
        values = config.paired.get(self.name)
        is_list_of_valid_values = isinstance(values, (tuple, list)) and all(
            isinstance(value, self.types) and not isinstance(value, bool) and self.is_valid(value)
            for value in values
        )
        if not is_list_of_valid_values or not values or len(set(values)) < len(values):
            hint = f"give distinct {self.expected}, at least one"
            raise FieldError(f"paired.{self.name}", hint, values)
        own_value = field_value(config, self.training_field)
        if own_value not in (field_value(default_config(), self.training_field), *values):
            hint = f"no training uses this value: remove the field and set paired.{self.name}"
            raise FieldError(self.training_field, hint, own_value)


AXES = (
    Axis("max_lags", "lag.max_lag", (int,), lambda lag: lag >= 0, "whole numbers >= 0"),
    Axis(
        "learning_rates",
        "optimizer.learning_rate",
        (int, float),
        lambda rate: 0 < rate < math.inf,
        "numbers > 0",
    ),
)


def trainings(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the config of each training, by the name of its folder."""
    configs = {}
    for max_lag, learning_rate in itertools.product(
        config.paired.max_lags, config.paired.learning_rates
    ):
        training = config.copy_and_resolve_references()
        with training.unlocked():
            del training.paired
        training.lag.max_lag, training.optimizer.learning_rate = max_lag, learning_rate
        configs[f"S{max_lag}-eta{shortest_text(learning_rate)}"] = training
    return configs


def shortest_text(learning_rate: float) -> str:
    """Returns the learning rate with the fewest digits that convert back to the same float."""
    text = f"{learning_rate:g}"
    return text if float(text) == learning_rate else repr(learning_rate)


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the config cannot be trained, or would compare no gradients.

    Raises:
      FieldError: names the first field with a wrong value, and the value.
    """
    for axis in AXES:
        axis.check(config)
    every = config.metrics.paired_every
    hint = "no gradients would be compared: give a number of learner steps >= 1"
    require(bool(every), "metrics.paired_every", hint, every)
    bound = max(config.paired.max_lags) + every
    hint = (
        "a training with the longest lag would end before its first comparison: give more than "
        f"{bound}, the longest of paired.max_lags plus metrics.paired_every"
    )
    require(config.steps > bound, "steps", hint, config.steps)
    schedule = config.lag.schedule
    hint = "every training has a single lag: give constant"
    require(schedule == "constant", "lag.schedule", hint, schedule)
    for training in trainings(config).values():
        cli.validate_on_this_machine(training)
