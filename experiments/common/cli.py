"""Runs every experiment from the command line in the same way.

    python -m experiments.NAME --config=FILE.py --workdir=DIR [--config.a.b=value ...]

Flags and folders are checked before the first file is written and before the first slow step. If
the workdir is finished, the experiment prints one line that says so, and draws its figures again
from the records.

Exit codes:

- 0: the experiment is done.
- 1: the disk is full.
- 2: the input is wrong. One line on stderr names the flag, the value and the fix.
- 75: the run was preempted. Start the same command again.
- 130: Ctrl-C interrupted the run.

An error in the program itself ends in a traceback.
"""

import contextlib
import difflib
import errno
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.common.examples import example_config, with_example
from experiments.common.workdir import SUMMARY, check_workdir, exclusive
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import describe_type, field_value
from staleness_grpo.errors import FieldError, FlagError

ROOT = pathlib.Path(__file__).parents[2]
# Errors of the operating system that the user can fix.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "heartbeat")

Main = Callable[[ConfigDict, pathlib.Path], None]
Draw = Callable[[pathlib.Path], list[pathlib.Path]]


def validate_on_this_machine(config: ConfigDict) -> None:
    """Checks a training's config against the devices that JAX finds. Raises FieldError."""
    import jax

    validation.validate(config, jax.device_count())


def draw_nothing(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns no figures. An experiment that draws nothing passes this function to `run`."""
    del workdir
    return []


def run(
    main: Main,
    draw: Draw,
    *,
    default_config: str = "experiments/configs/arithmetic.py",
    validate: Callable[[ConfigDict], None] = validate_on_this_machine,
    several_processes: bool = False,
    mesh_may_differ: bool = True,
    optional: Sequence[str] = (),
) -> NoReturn:
    """Parses sys.argv, checks it, runs the experiment, and exits.

    Args:
      main: makes the measurements that the workdir lacks, and writes summary.json after the last
        one. It may raise FieldError or FlagError for errors that show only while it runs. It
        imports JAX inside the function, so that a mistyped flag is reported at once.
      draw: draws the figures of a finished workdir from its records; returns their paths.
      default_config: path, from the repository's root, of the config file that is used when
        --config is not given.
      validate: raises FieldError for a config that cannot be run.
      several_processes: whether the experiment can run as several processes. If so, the flags in
        HOST_FLAGS are defined.
      mesh_may_differ: whether an unfinished workdir may be continued on another mesh.
      optional: names of sections in the default config that other configs need not have.
    """

    def flags_parser(argv: list[str]) -> list[str]:
        if several_processes:
            define_host_flags(flags.FLAGS)
        with _exits_in_one_line():
            parse(argv, flags.FLAGS, ROOT / default_config)
            check_sections(flags.FLAGS["config"], ROOT / default_config, optional)
        return argv[:1]

    def absl_main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend that it does not find
        config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
        with _exits_in_one_line(workdir, config):
            if several_processes:
                join_hosts(flags.FLAGS)
            execute(main, draw, config, workdir, validate, mesh_may_differ)

    app.run(absl_main, flags_parser=flags_parser)
    raise AssertionError("app.run exits")


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


def parse(argv: Sequence[str], flag_values: flags.FlagValues, default_config: pathlib.Path) -> None:
    """Defines --config and --workdir in `flag_values` and parses argv. Raises FlagError."""
    if {"--config", "-config"} & set(argv):
        raise FlagError("config", "", "write --config=FILE.py")
    given_paths = (match[1] for arg in argv[1:] if (match := re.match("--?config=(.*)", arg)))
    path = next(given_paths, str(default_config))
    config = load_config(path)
    for arg in argv[1:]:
        if override := re.match(r"--?(?:no)?config\.([^=]+)", arg):
            _check_field(override[1], _value_of(arg), config)
    config_flags.DEFINE_config_file(
        "config",
        str(default_config),
        "Config file.",
        flag_values=flag_values,
        sys_argv=list(argv),
    )
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=flag_values)
    try:
        positional = flag_values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        names = [name for name in ("config", "workdir", *HOST_FLAGS) if name in flag_values]
        similar_names = difflib.get_close_matches(error.flagname, names, n=1)
        all_flags = f"the flags are --config.FIELD, --{', --'.join(names)}"
        hint = f"did you mean --{similar_names[0]}?" if similar_names else all_flags
        value = _value_of(error.flagvalue)
        raise FlagError(error.flagname, value, f"unknown flag: {hint}") from error
    except flags.Error as error:
        raise _flag_error(error, argv, config) from error
    if positional:
        hint = f"the argument {positional[0]!r} belongs to no flag: write --NAME=VALUE"
        raise FlagError("config", path, hint)


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
        hint = f"give {describe_type(section.get_type(last), section[last])}, after --config"
    reason = str(error).split(": ", 1)[-1]
    # For a boolean flag, the message is the text of a tuple; its first item is the reason.
    reason = re.sub(r"\('(.*)', .*\)", r"\1", reason)
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
    flag: flags.Flag, default_config: pathlib.Path, optional: Sequence[str] = ()
) -> None:
    """Refuses a config that was written for another experiment.

    Such a config lacks a section of this experiment's default config.

    Args:
      flag: the flag --config.
      default_config: the config file whose sections are needed.
      optional: names of sections that need not be there.

    Raises:
      FlagError: a section is missing. The message names the first one.
    """
    needed_sections = load_config(default_config)
    accepted_names = {*(flag.value or ()), *optional}
    missing_sections = [name for name in needed_sections if name not in accepted_names]
    if missing_sections:
        path = config_flags.get_config_filename(flag)
        hint = f"has no section {missing_sections[0]}: give a config like {default_config}"
        raise FlagError("config", path, hint)


def _value_of(arg: str) -> str:
    """Returns the part of an argument after the '='."""
    return arg.partition("=")[2]


def _check_field(name: str, value: str, config: ConfigDict) -> None:
    """Raises FlagError unless the config has the field `name`. `value` is for the message."""
    section = config
    for part in name.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            names = list(section) if isinstance(section, ConfigDict) else []
            similar_names = difflib.get_close_matches(part, names, n=1)
            all_fields = f"the fields of this section are {', '.join(names) or 'none'}"
            hint = f"did you mean {similar_names[0]}?" if similar_names else all_fields
            if name.startswith("task."):
                hint += f"; for another task write a config file like {example_config('jsonl')}"
            raise FlagError(f"config.{name}", value, f"unknown field {part}: {hint}")
        section = section[part]


def execute(
    main: Main,
    draw: Draw,
    config: ConfigDict,
    workdir: str | None,
    validate: Callable[[ConfigDict], None],
    mesh_may_differ: bool = True,
) -> None:
    """Checks the folder and the config, then calls `main` and `draw` as `complete` does.

    Raises:
      FieldError: the config cannot be run. Nothing was written, unless `main` raised the error.
      FlagError: the folder cannot be used. Nothing was written, unless `main` raised the error.
    """
    folder = check_workdir(workdir, config, mesh_may_differ)
    validate(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # Some file systems, such as /proc, raise this error because they allow no new folders.
        hint = "no folder can be created at this path: give another folder"
        raise FlagError("workdir", workdir, hint) from error
    import jax

    from staleness_grpo.runtime import compile_cache, distributed

    compile_cache.enable(ROOT / ".cache" / "jax")
    writes_files = jax.process_index() == 0
    try:
        with exclusive(folder) if writes_files else contextlib.nullcontext():
            complete(main, draw, config, folder, writes_files)
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, (FieldError, FlagError)):
            raise
        distributed.end_without_the_others(error)


def complete(
    main: Main, draw: Draw, config: ConfigDict, folder: pathlib.Path, draws: bool = True
) -> None:
    """Calls `main` unless the folder is finished, then draws the figures if it is finished.

    Args:
      main: measures, as described in `run`.
      draw: draws the figures, as described in `run`.
      config: the experiment's config.
      folder: the workdir.
      draws: whether this process draws and prints. Of several processes, only one does.
    """
    if (folder / SUMMARY).exists():
        if draws:
            print(f"{folder}: finished already; its figures are drawn again from its records")
    else:
        main(config, folder)
    if draws and (folder / SUMMARY).exists():
        print(folder / SUMMARY)
        for path in draw(folder):
            print(path)


@contextlib.contextmanager
def _exits_in_one_line(
    workdir: str | None = None, config: ConfigDict | None = None
) -> Iterator[None]:
    """Turns each error that the user can fix into one line on stderr and an exit code.

    Ctrl-C and a full disk are reported in the same way. All other errors pass through.
    """
    try:
        yield
    except FieldError as error:
        if config is not None:
            error = error.with_value(lambda field: field_value(config, field))
            error = with_example(error, config)
        print(FlagError.of_field(error), file=sys.stderr)
        sys.exit(2)
    except FlagError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        hint = "interrupted; run the same command again to continue from the saved results"
        print(f"--workdir={workdir}: {hint}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NOT_ALLOWED):
            raise
        is_full = error.errno in DISK_FULL
        place = f" ({error.filename})" if error.filename else ""
        hint = "give a writable folder"
        if is_full:
            hint = "free some space; earlier records are intact"
        print(f"--workdir={workdir}: {error.strerror}{place}: {hint}", file=sys.stderr)
        sys.exit(1 if is_full else 2)
