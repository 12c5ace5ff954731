"""Parses the flags of a command, and refuses wrong ones in one line."""

import functools
import inspect
import os
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from experiments.common.examples import example_config
from staleness_grpo.config.defaults import default_config, describe_type, field_value
from staleness_grpo.errors import FieldError, FlagError, did_you_mean

FLAG_TYPES = (bool, int, float, str, tuple)  # types of unset fields that flags can set
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "heartbeat")


def define_host_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags for a run that consists of several processes (HOST_FLAGS)."""
    coordinator = "HOST:PORT of process 0. The value auto lets JAX find it."
    flags.DEFINE_string("coordinator", None, coordinator, flag_values=flag_values)
    num_processes = "Number of processes of this run."
    flags.DEFINE_integer("num_processes", None, num_processes, flag_values=flag_values)
    process_id = "Index of this process, from 0."
    flags.DEFINE_integer("process_id", None, process_id, flag_values=flag_values)
    flags.DEFINE_integer(
        "heartbeat",
        60,
        "Seconds without a sign of life after which a process is treated as lost.",
        flag_values=flag_values,
        lower_bound=5,
    )


def join_hosts(flag_values: flags.FlagValues) -> None:
    """Connects this process to the others if flags or environment variables ask for it.

    Raises:
      FlagError: the flags and variables contradict each other, or no connection is possible.
    """
    from staleness_grpo.runtime import distributed

    given = {name: flag_values[name].value for name in distributed.VARIABLES}
    hosts = distributed.find(given, os.environ)
    if hosts is not None:
        distributed.start(hosts, flag_values.heartbeat)


def given_config(argv: Sequence[str], default_config: pathlib.Path) -> ConfigDict:
    """Returns the config of the file that argv names, or of the default file.

    A flag --config.task.name with another task than the file's gives the section the fields of that
    task. So they can be flags. With --config.policy.name, the arguments of that class can be flags.

    Raises:
      FlagError: the file cannot be used, or there is no such task.
    """
    config = load_config(_config_path(argv, default_config))
    for arg in argv[1:]:
        match = re.match(r"--?config\.((?:\w+\.)*(?:task|policy))\.name=(.*)", arg)
        if match is None:
            continue
        *parents, kind = match[1].split(".")
        section = functools.reduce(lambda part, name: part.get(name, {}), parents, config)
        if kind not in section or section[kind].get("name") == match[2]:
            continue
        if kind == "task":
            section.task = _task_section(match[1], match[2])
        elif "name" in section.policy:
            section.policy = _policy_section(match[1], match[2])
    for arg in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.((?:\w+\.)*task)\.(\w+)", arg):
            names = match[1].split(".")
            section = functools.reduce(lambda part, name: part.get(name, {}), names, config)
            _add_task_field(section, match[2])
    return config


def _add_task_field(section: Any, field: str) -> None:
    """Adds a field that the task has and the config's file leaves out, so that it can be a flag."""
    from staleness_grpo.tasks import task_fields

    if not isinstance(section, ConfigDict) or field in section or not section.get("name"):
        return
    try:
        parameters = task_fields(section.name)
    except FieldError:
        return  # validation names the task that is not there
    if field in parameters:
        section[field] = _defaults({field: parameters[field]})[field]


def _task_section(section: str, name: str) -> ConfigDict:
    """Returns the section of a task with its fields, which are unset or have their defaults."""
    from staleness_grpo.tasks import task_fields

    try:
        parameters = task_fields(name)
    except FieldError as error:
        raise FlagError.of_field(error.below(section)) from error
    return ConfigDict({"name": name} | _defaults(parameters))


def _policy_section(section: str, name: str) -> ConfigDict:
    """Returns the section of a policy of one's own. Its other fields have their defaults."""
    from staleness_grpo.policy.own import policy_fields

    try:
        parameters = policy_fields(name)
    except FieldError as error:
        raise FlagError.of_field(error.below(section)) from error
    policy = default_config().policy
    policy.name, policy.arguments = name, ConfigDict(_defaults(parameters))
    return policy


def _defaults(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Returns the fields for the arguments of a class, which are unset or have their defaults."""
    fields: dict[str, Any] = {}
    for field, parameter in parameters.items():
        default, kind = parameter.default, parameter.annotation
        if default is inspect.Parameter.empty or default is None:
            kinds = [part for part in (*get_args(kind), kind) if part in FLAG_TYPES]
            fields[field] = config_dict.placeholder(kinds[0] if kinds else object)
        else:
            fields[field] = dict(default) if isinstance(default, Mapping) else default
    return fields


def _config_path(argv: Sequence[str], default_config: pathlib.Path) -> str:
    given_paths = (match[1] for arg in argv[1:] if (match := re.match("--?config=(.*)", arg)))
    return next(given_paths, str(default_config))


def parse(argv: Sequence[str], flag_values: flags.FlagValues, default_config: pathlib.Path) -> None:
    """Defines --config and --workdir in `flag_values` and parses argv. Raises FlagError."""
    if {"--config", "-config"} & set(argv):
        raise FlagError("config", "", "write --config=FILE.py")
    config = given_config(argv, default_config)
    for arg in argv[1:]:
        if override := re.match(r"--?(?:no)?config\.([^=]+)", arg):
            _check_field(override[1], _value_of(arg), config)
    _refuse_two_lists(argv, config)
    words = [arg for arg in argv if not re.match("--?config=", arg)]
    config_flags.DEFINE_config_dict(
        "config", config, "Config file.", flag_values=flag_values, sys_argv=words
    )
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=flag_values)
    try:
        positional = flag_values(words)[1:]
    except flags.UnrecognizedFlagError as error:
        names = [name for name in ("config", "workdir", *HOST_FLAGS) if name in flag_values]
        all_flags = f"the flags are --config.FIELD, --{', --'.join(names)}"
        hint = did_you_mean(f"--{error.flagname}", [f"--{name}" for name in names], all_flags)
        value = _value_of(error.flagvalue)
        raise FlagError(error.flagname, value, f"unknown flag: {hint}") from error
    except flags.Error as error:
        # The flags before the wrong one have changed `config` already.
        raise _flag_error(error, argv, given_config(argv, default_config)) from error
    if positional:
        name, _, value = positional[0].partition("=")
        flag = name if name in flag_values else f"config.{name}"
        is_field = flag == name or _is_field(config, name)
        fix = f"--{flag}={value}" if is_field else "--NAME=VALUE"
        raise FlagError.of_variable(name, value, f"this belongs to no flag: write {fix}")


def _is_field(config: ConfigDict, name: str) -> bool:
    """Returns whether a config has a field."""
    try:
        field_value(config, name)
    except (KeyError, TypeError, AttributeError):
        return False
    return True


def _flag_error(error: flags.Error, argv: Sequence[str], config: ConfigDict) -> FlagError:
    """Returns absl's error about a flag's value, with a hint that states the type to give.

    The message of absl is either "flag --config.steps=abc: invalid literal for int()" or a sentence
    that contains the flag.
    """
    flag_in_message = re.search(r"--([\w.]+)", str(error))
    name = flag_in_message[1] if flag_in_message else "config"
    values = [_value_of(arg) for arg in argv if re.match(f"--?{re.escape(name)}=", arg)]
    hint = "give a value"
    if name.startswith("config."):
        *sections, last = name.split(".")[1:]
        section = field_value(config, ".".join(sections)) if sections else config
        hint = f"give {describe_type(section.get_type(last), section[last])}"
    reason = str(error).split(": ", 1)[-1]
    # For a boolean flag, the message is the text of a tuple; its first item is the reason.
    reason = re.sub(r"\('(.*)', .*\)", r"\1", reason)
    for words, plain in (
        ("invalid literal", "is not a whole number"),
        ("could not", "is not a number"),
    ):
        if reason.startswith(words):  # the words are those of int() and float()
            reason = plain
    # If a flag is given several times, absl uses the last value.
    return FlagError(name, values[-1] if values else "", f"{reason}: {hint}")


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """Returns the config that get_config() of a file returns.

    Raises:
      FlagError: there is no such file, get_config() fails, or its result is no ConfigDict.
    """
    if not pathlib.Path(path).is_file():
        hint = "there is no such file: give the path of an existing file"
        raise FlagError("config", path, hint)
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        hint = f"get_config() of this file fails with {reason}: fix the file"
        raise FlagError("config", path, hint) from error
    if not isinstance(config, ConfigDict):
        hint = f"get_config() returned {type(config).__name__}: make it return a ConfigDict"
        raise FlagError("config", path, hint)
    return config


def check_sections(
    config: ConfigDict,
    argv: Sequence[str],
    default_config: pathlib.Path,
    optional: Sequence[str] = (),
) -> None:
    """Refuses a config that was written for another experiment.

    Such a config lacks a section of this experiment's default config.

    Args:
      config: the config that was given.
      argv: the arguments, which have the path of its file.
      default_config: the config file whose sections are needed.
      optional: names of sections that need not be there.

    Raises:
      FlagError: a section is missing. The message names the first one.
    """
    needed_sections = load_config(default_config)
    accepted_names = {*config, *optional}
    missing_sections = [name for name in needed_sections if name not in accepted_names]
    if missing_sections:
        path = _config_path(argv, default_config)
        hint = f"has no section {missing_sections[0]}: give a config like {default_config}"
        raise FlagError("config", path, hint)


def _value_of(arg: str) -> str:
    """Returns the part of an argument after the '='."""
    return arg.partition("=")[2]


def _refuse_two_lists(argv: Sequence[str], config: ConfigDict) -> None:
    """Raises FlagError if a list is given twice: ml_collections would join the two."""
    values: dict[str, str] = {}
    for arg in argv[1:]:
        if override := re.match(r"--?config\.([^=]+)=", arg):
            name = override[1]
            if name in values and isinstance(field_value(config, name), tuple):
                hint = f"the flag is given twice, before with {values[name]}: give one list"
                raise FlagError(f"config.{name}", _value_of(arg), hint)
            values[name] = _value_of(arg)


def _check_field(name: str, value: str, config: ConfigDict) -> None:
    """Raises FlagError unless the config has the field `name`. `value` is for the message."""
    section = config
    for part in name.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            names = list(section) if isinstance(section, ConfigDict) else []
            all_fields = f"the fields of this section are {', '.join(names) or 'none'}"
            if name.startswith("task."):
                example = example_config("jsonl")
                all_fields += f"; for another task write a config file like {example}"
            hint = did_you_mean(part, names, all_fields)
            raise FlagError(f"config.{name}", value, f"unknown field {part}: {hint}")
        section = section[part]
