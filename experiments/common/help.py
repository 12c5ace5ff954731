"""Prints the help of a command: what it does, its flags, and every field of its config."""

import sys
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

HELP_FLAGS = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("help", "helpfull", "h")}


def is_asked_for(argv: Sequence[str]) -> bool:
    """Says whether one of the arguments asks for help."""
    return bool(HELP_FLAGS & set(argv[1:]))


def text(config: ConfigDict, flag_values: flags.FlagValues) -> str:
    """Returns the help of the command that is running.

    Args:
      config: the config whose fields and values are listed.
      flag_values: the flags that the command and absl define.
    """
    command = sys.modules["__main__"]
    lines = [(command.__doc__ or "").strip(), "", "Flags:"]
    meanings_of_flags = {"config": "Config file.", "workdir": "Folder of the results."}
    for module, defined in flag_values.flags_by_module_dict().items():
        if not module.startswith("absl."):
            meanings_of_flags |= {flag.name: flag.help or "" for flag in defined}
    lines += [f"  --{name}  {meaning}" for name, meaning in meanings_of_flags.items()]
    lines += ["", "Every field of the config is a flag too. Its value here is that of --config:"]
    meanings = _meanings()
    for field, value in fields(config):
        lines.append(f"  --config.{field}={'' if value is None else value}")
        if field in meanings:
            lines.append(f"      {meanings[field]}")
    return "\n".join(lines)


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields each field of a config with its value, and dots between sections."""
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _meanings() -> dict[str, str]:
    """Returns what each field of the default config means; nothing without its source code."""
    from experiments.common.reference_pages import field_comments
    from staleness_grpo.config.defaults import default_config

    try:
        return field_comments(default_config)
    except OSError:
        return {}
