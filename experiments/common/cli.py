"""Runs experiments from the command line, all in the same way.

    python -m experiments.NAME --config=FILE.py --workdir=DIR [--config.a.b=value ...]

Flags and folders are checked before anything is written or slow. On a finished workdir every
experiment says so in one line and draws its figures again from the records.

Exit codes: 0 done; 1 the disk is full; 2 bad input, with one line on stderr that names the flag,
the value and the fix; 75 preempted, start it again; 130 interrupted by Ctrl-C. A mistake of the
program itself ends in a traceback.
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
from experiments.common.workdir import SUMMARY, check_workdir, in_use
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import describe_type, field_value
from staleness_grpo.errors import FieldError, FlagError

ROOT = pathlib.Path(__file__).parents[2]
# Errors of the operating system that the person at the keyboard can fix.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "heartbeat")

Main = Callable[[ConfigDict, pathlib.Path], None]
Draw = Callable[[pathlib.Path], list[pathlib.Path]]


def validate_on_this_machine(config: ConfigDict) -> None:
    """Validates a training's config with the devices that JAX finds. Raises FieldError."""
    import jax

    validation.validate(config, jax.device_count())


def draw_nothing(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns no figures, for an experiment whose summary is a table."""
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
      main: measures what is missing and writes summary.json once all is there. It may raise
        FieldError or FlagError for what only it can know. It imports JAX itself, late, so that a
        mistyped flag costs no second.
      draw: draws the figures of a finished workdir from its records; returns their paths.
      default_config: the config file without --config, from the repository's root.
      validate: raises FieldError for a config that cannot be run.
      several_processes: whether it can run as several processes; then there are flags for that.
      mesh_may_differ: whether results on another mesh are as good, so that a workdir may go on
        there.
      optional: sections of the default config that another may lack.
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
        logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it does not find
        config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
        with _exits_in_one_line(workdir, config):
            if several_processes:
                join_hosts(flags.FLAGS)
            execute(main, draw, config, workdir, validate, mesh_may_differ)

    app.run(absl_main, flags_parser=flags_parser)
    raise AssertionError("app.run exits")


def define_host_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of a run of several processes."""
    coordinator = "HOST:PORT of process 0; auto: as JAX finds it."
    flags.DEFINE_string("coordinator", None, coordinator, flag_values=flag_values)
    flags.DEFINE_integer("num_processes", None, "Processes of this run.", flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "Which of them this is.", flag_values=flag_values)
    flags.DEFINE_integer(
        "heartbeat",
        60,
        "Seconds after which a silent process is given up.",
        flag_values=flag_values,
        lower_bound=5,
    )


def join_hosts(flag_values: flags.FlagValues) -> None:
    """Starts JAX as one of several processes, if flags or environment say so. Raises FlagError."""
    from staleness_grpo.runtime import distributed

    given = {name: flag_values[name].value for name in distributed.VARIABLES}
    hosts = distributed.find(given, os.environ)
    if hosts is not None:
        distributed.start(hosts, flag_values.heartbeat)


def parse(argv: Sequence[str], flag_values: flags.FlagValues, default_config: pathlib.Path) -> None:
    """Defines --config and --workdir in `flag_values` and parses argv. Raises FlagError."""
    if {"--config", "-config"} & set(argv):
        raise FlagError("config", "", "write --config=FILE.py")
    given = (m[1] for arg in argv[1:] if (m := re.match("--?config=(.*)", arg)))
    path = next(given, str(default_config))
    config = load_config(path)
    for arg in argv[1:]:
        if override := re.match(r"--?(?:no)?config\.([^=]+)", arg):
            _check_field(override[1], _value(arg), config)
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
        close = difflib.get_close_matches(error.flagname, names, n=1)
        known = f"the flags are --config.FIELD, --{', --'.join(names)}"
        hint = f"did you mean --{close[0]}?" if close else known
        value = _value(error.flagvalue)
        raise FlagError(error.flagname, value, f"unknown flag: {hint}") from error
    except flags.Error as error:
        raise _flag_error(error, argv, config) from error
    if positional:
        hint = f"{positional[0]!r} belongs to no flag: write --name=value"
        raise FlagError("config", path, hint)


def _flag_error(error: flags.Error, argv: Sequence[str], config: ConfigDict) -> FlagError:
    """Says of a value that a flag cannot take what it takes.

    The message of absl is "flag --config.steps=abc: invalid literal for int()", or a sentence that
    names the flag.
    """
    named = re.search(r"--([\w.]+)", str(error))
    name = named[1] if named else "config"
    given = [_value(arg) for arg in argv if re.match(f"--?{re.escape(name)}=", arg)]
    hint = "give a value"
    if name.startswith("config."):
        *sections, last = name.split(".")[1:]
        section = field_value(config, ".".join(sections)) if sections else config
        hint = f"give {describe_type(section.get_type(last), section[last])}, after --config"
    reason = str(error).split(": ", 1)[-1]
    reason = re.sub(r"\('(.*)', .*\)", r"\1", reason)  # of a boolean flag it is a tuple
    return FlagError(name, given[-1] if given else "", f"{reason}: {hint}")  # the last one counts


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """Returns the config that a file's get_config() makes. Raises FlagError."""
    if not pathlib.Path(path).is_file():
        hint = "there is no such file: write --config=FILE.py, with a path that exists"
        raise FlagError("config", path, hint)
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        hint = f"its get_config() fails, fix the file: {reason}"
        raise FlagError("config", path, hint) from error
    if not isinstance(config, ConfigDict):
        hint = f"get_config() returned {type(config).__name__}: make it return a ConfigDict"
        raise FlagError("config", path, hint)
    return config


def check_sections(
    flag: flags.Flag, default_config: pathlib.Path, optional: Sequence[str] = ()
) -> None:
    """Refuses the config of another experiment, which lacks a section of this one's default.

    Raises:
      FlagError: naming the section.
    """
    needed = load_config(default_config)
    known = {*(flag.value or ()), *optional}
    missing = [name for name in needed if name not in known]
    if missing:
        path = config_flags.get_config_filename(flag)
        raise FlagError(
            "config", path, f"has no section {missing[0]}: give one like {default_config}"
        )


def _value(arg: str) -> str:
    """Returns the part of an argument behind the '='."""
    return arg.partition("=")[2]


def _check_field(name: str, value: str, config: ConfigDict) -> None:
    """Raises FlagError unless the config has this field."""
    section = config
    for part in name.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            names = list(section) if isinstance(section, ConfigDict) else []
            close = difflib.get_close_matches(part, names, n=1)
            known = f"the fields there are {', '.join(names) or 'none'}"
            hint = f"did you mean {close[0]}?" if close else known
            if name.startswith("task."):
                hint += f"; for another task write a config file, as {example_config('jsonl')}"
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
    """Checks the folder and the config, then runs main and draws.

    Raises:
      FieldError, FlagError: before anything was written.
    """
    folder = check_workdir(workdir, config, mesh_may_differ)
    validate(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        # Some file systems, /proc for one, answer so where nothing can be made.
        hint = "no folder can be made there: give another"
        raise FlagError("workdir", workdir, hint) from error
    import jax

    from staleness_grpo.runtime import compile_cache, distributed

    compile_cache.enable(ROOT / ".cache" / "jax")
    first = jax.process_index() == 0
    try:
        with in_use(folder) if first else contextlib.nullcontext():
            complete(main, draw, config, folder, first)
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, (FieldError, FlagError)):
            raise
        distributed.end_without_the_others(error)


def complete(
    main: Main, draw: Draw, config: ConfigDict, folder: pathlib.Path, first: bool = True
) -> None:
    """Runs main unless the folder is finished, and draws the figures of a finished one.

    Args:
      main, draw, config: of the experiment.
      folder: the workdir.
      first: whether this is the process, of several, that draws.
    """
    if (folder / SUMMARY).exists():
        if first:
            print(f"{folder}: finished already; its figures are drawn again from its records")
    else:
        main(config, folder)
    if first and (folder / SUMMARY).exists():
        print(folder / SUMMARY)
        for path in draw(folder):
            print(path)


@contextlib.contextmanager
def _exits_in_one_line(
    workdir: str | None = None, config: ConfigDict | None = None
) -> Iterator[None]:
    """Turns what the person at the keyboard can fix into one line on stderr and an exit code."""
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
        hint = "interrupted; the same command goes on from what is saved there"
        print(f"--workdir={workdir}: {hint}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (*DISK_FULL, *NOT_ALLOWED):
            raise
        full = error.errno in DISK_FULL
        place = f" ({error.filename})" if error.filename else ""
        hint = (
            "free some space; earlier records are intact" if full else "give a folder to write in"
        )
        print(f"--workdir={workdir}: {error.strerror}{place}: {hint}", file=sys.stderr)
        sys.exit(1 if full else 2)
