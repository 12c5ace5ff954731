"""The command line that all experiments share: flags and folders are checked before anything is written or slow.

    python -m experiments.NAME --config=FILE.py --workdir=DIR [--config.a.b=value ...]

Exit codes: 0 done; 1 the disk is full; 75 preempted, start it again; 130 interrupted by Ctrl-C; 2 bad input, with one
line on stderr that names the flag, the value and a mend. A mistake of the program itself ends in a traceback.
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

from experiments.workdir import check_workdir, in_use
from staleness_grpo import config as config_lib
from staleness_grpo import validation
from staleness_grpo.config import FlagError
from staleness_grpo.tasks import another_config

ROOT = pathlib.Path(__file__).parents[1]
# What the person at the keyboard can mend, unlike other errors of the operating system.
FULL = (errno.ENOSPC, errno.EDQUOT)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "heartbeat")
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def validate_on_this_machine(config: ConfigDict) -> None:
    """`validation.validate` with the devices that JAX finds. Raises ConfigError."""
    import jax

    validation.validate(config, jax.device_count())


def run(
    main: Callable[[ConfigDict, pathlib.Path], None],
    *,
    default_config: str = "experiments/configs/arithmetic.py",
    validate: Callable[[ConfigDict], None] = validate_on_this_machine,
    several_processes: bool = False,
    mesh_may_differ: bool = True,
    optional: Sequence[str] = (),
) -> NoReturn:
    """Parses sys.argv, checks it, calls main(config, workdir), and exits.

    Args:
      main: the experiment. It may raise FlagError for what only it can know; it imports JAX itself, late, so that
        a mistyped flag costs no second.
      default_config: the config file without --config, from the repository's root.
      validate: raises FlagError for a config that cannot be run.
      several_processes: whether it can run as several processes; then there are flags for that.
      mesh_may_differ: whether results on another mesh are as good, so that a workdir may go on there.
      optional: sections of the default config that another may lack.
    """

    def flags_parser(argv):
        if several_processes:
            define_host_flags(flags.FLAGS)
        with _exits_in_one_line():
            parse(argv, flags.FLAGS, ROOT / default_config)
            check_sections(flags.FLAGS["config"], ROOT / default_config, optional)
        return argv[:1]

    def absl_main(argv):
        del argv
        logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it does not find
        with _exits_in_one_line(flags.FLAGS.workdir):
            if several_processes:
                join_hosts(flags.FLAGS)
            execute(main, flags.FLAGS.config, flags.FLAGS.workdir, validate, mesh_may_differ)

    app.run(absl_main, flags_parser=flags_parser)


def define_host_flags(flag_values: flags.FlagValues) -> None:
    """The flags of a run of several processes."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; auto: as JAX finds it.", flag_values=flag_values)
    flags.DEFINE_integer("num_processes", None, "Processes of this run.", flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "Which of them this is.", flag_values=flag_values)
    flags.DEFINE_integer(
        "heartbeat", 60, "Seconds after which a silent process is given up.", flag_values=flag_values, lower_bound=5
    )


def join_hosts(flag_values: flags.FlagValues) -> None:
    """Starts JAX as one of several processes, if flags or environment say so. Raises FlagError."""
    from staleness_grpo import distributed

    hosts = distributed.find({name: flag_values[name].value for name in distributed.VARIABLES}, os.environ)
    if hosts is not None:
        distributed.start(hosts, flag_values.heartbeat)


def parse(argv: Sequence[str], flag_values: flags.FlagValues, default_config: pathlib.Path) -> None:
    """Defines --config and --workdir in `flag_values` and parses argv. Raises FlagError."""
    if {"--config", "-config"} & set(argv):
        raise FlagError("config", "", "write --config=FILE.py")
    path = next((m[1] for arg in argv[1:] if (m := re.match("--?config=(.*)", arg))), default_config)
    config = load_config(path)
    for arg in argv[1:]:
        if override := re.match(r"--?(?:no)?config\.([^=]+)", arg):
            _check_field(override[1], _value(arg), config)
    config_flags.DEFINE_config_file(
        "config", str(default_config), "Config file.", flag_values=flag_values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=flag_values)
    try:
        positional = flag_values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        names = [name for name in ("config", "workdir", *HOST_FLAGS) if name in flag_values]
        close = difflib.get_close_matches(error.flagname, names, n=1)
        mend = f"did you mean --{close[0]}?" if close else f"the flags are --config.FIELD, --{', --'.join(names)}"
        raise FlagError(error.flagname, _value(error.flagvalue), f"unknown flag: {mend}") from error
    except flags.Error as error:
        # "flag --config.steps=abc: invalid literal for int()", or a sentence that names the flag.
        name = re.search(r"--([\w.]+)", str(error))[1]
        given = [_value(arg) for arg in argv if re.match(f"--?{re.escape(name)}=", arg)]  # the last one counts
        mend = "give a value"
        if name.startswith("config."):
            *sections, last = name.split(".")[1:]
            section = config_lib.field(config, ".".join(sections)) if sections else config
            mend = f"give {config_lib.of_type(section.get_type(last), section[last])}, after --config"
        reason = re.sub(r"\('(.*)', .*\)", r"\1", str(error).split(": ", 1)[-1])  # of a boolean flag a tuple
        raise FlagError(name, given[-1] if given else "", f"{reason}: {mend}") from error
    if positional:
        raise FlagError("config", path, f"{positional[0]!r} belongs to no flag: write --name=value")


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """The config that a file's get_config() returns. Raises FlagError."""
    if not pathlib.Path(path).is_file():
        raise FlagError("config", path, "there is no such file: write --config=FILE.py, with a path that exists")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        raise FlagError("config", path, f"its get_config() fails, mend the file: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise FlagError("config", path, f"get_config() returned {type(config).__name__}: make it return a ConfigDict")
    return config


def check_sections(flag: flags.Flag, default_config: pathlib.Path, optional: Sequence[str] = ()) -> None:
    """Raises FlagError for the config of another experiment, which lacks a section of this one's default."""
    missing = [name for name in load_config(default_config) if name not in (*flag.value, *optional)]
    if missing:
        path = config_flags.get_config_filename(flag)
        raise FlagError("config", path, f"has no section {missing[0]}: give one like {default_config}")


def _value(arg: str) -> str:
    """What stands behind the '=' of an argument."""
    return arg.partition("=")[2]


def _check_field(name: str, value: str, config: ConfigDict) -> None:
    """Raises ConfigError unless the config has this field."""
    section = config
    for part in name.split("."):
        if not isinstance(section, ConfigDict) or part not in section:
            names = list(section) if isinstance(section, ConfigDict) else []
            close = difflib.get_close_matches(part, names, n=1)
            mend = f"did you mean {close[0]}?" if close else f"the fields there are {', '.join(names) or 'none'}"
            if name.startswith("task."):
                mend += f"; for another task {another_config('jsonl')}"
            raise config_lib.ConfigError(name, value, f"unknown field {part}: {mend}")
        section = section[part]


def execute(
    main: Callable[[ConfigDict, pathlib.Path], None],
    config: ConfigDict,
    workdir: str | None,
    validate: Callable[[ConfigDict], None],
    mesh_may_differ: bool = True,
) -> None:
    """Checks the folder and the config, then runs main. Raises FlagError before anything was written."""
    folder = check_workdir(workdir, config, mesh_may_differ)
    validate(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # some file systems, /proc for one, answer so where nothing can be made
        raise FlagError("workdir", workdir, "no folder can be made there: give another") from error
    import jax

    from staleness_grpo import compile_cache, distributed

    compile_cache.enable(ROOT / ".cache" / "jax")
    try:
        with in_use(folder) if jax.process_index() == 0 else contextlib.nullcontext():
            main(config, folder)
    except Exception as error:
        if jax.process_count() == 1 or isinstance(error, FlagError):
            raise
        distributed.end_without_the_others(error)


@contextlib.contextmanager
def _exits_in_one_line(workdir: str | None = None) -> Iterator[None]:
    """Turns what the person at the keyboard can mend into one line on stderr and an exit code."""
    try:
        yield
    except FlagError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"--workdir={workdir}: interrupted; the same command goes on from what is saved there", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        place = f" ({error.filename})" if error.filename else ""
        mend = "free some space; earlier records are intact" if error.errno in FULL else "give a folder to write in"
        print(f"--workdir={workdir}: {error.strerror}{place}: {mend}", file=sys.stderr)
        sys.exit(1 if error.errno in FULL else 2)
