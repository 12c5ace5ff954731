"""Refuses fields that only trainings use, where another experiment would ignore them."""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import require

# Fields about what is shown of a training beside its records -> the value that turns them off.
OFF = {"metrics.samples_every": 0, "sinks.tensorboard": False, "sinks.wandb": False}


def refuse_training_only(config: ConfigDict) -> None:
    """Raises FieldError if a config turns one of these fields on."""
    for field, off in OFF.items():
        value = field_value(config, field)
        hint = f"only experiments.train and experiments.paired_bias can do this: give {off}"
        require(value == off, field, hint, value)
