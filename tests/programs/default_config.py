"""A config file with the default configuration, as a user writes it."""

from staleness_grpo.config.defaults import default_config as get_config  # noqa: F401
