"""Parses the flags of a command as the command does."""

from absl import flags
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.flag_parsing import parse

CONFIGS = cli.ROOT / "experiments" / "configs"


def given(*overrides: str, config: str) -> ConfigDict:
    """Returns the config of a file of experiments/configs, with `overrides` as FIELD=VALUE."""
    words = [f"--config.{override}" for override in overrides]
    flag_values = flags.FlagValues()
    parse(["prog", f"--config={CONFIGS / config}.py", *words], flag_values, CONFIGS / "unused.py")
    return flag_values.config
