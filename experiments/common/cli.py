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
import errno
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.common import devices, help
from experiments.common.contents import check_same_code
from experiments.common.examples import by_name, with_example
from experiments.common.flag_parsing import (
    check_sections,
    define_host_flags,
    given_config,
    join_hosts,
    parse,
)
from experiments.common.workdir import SUMMARY, check_folder, check_same_config, exclusive, extend
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime import allocator, compiler_flags
from staleness_grpo.runtime.records import RESTORE, DamagedFileError, read_json

ROOT = pathlib.Path(__file__).parents[2]
# Errors of the operating system that the user can fix.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)

# A learner step of the default config, of this width, has 13 MB of temporary arrays. glibc keeps up
# to 32 MB: see docs/log/2026-11-30-one-arena.md.
SMALL_WIDTH = 32

Main = Callable[[ConfigDict, pathlib.Path], None]
Draw = Callable[[pathlib.Path], list[pathlib.Path]]


def _is_small(config: ConfigDict) -> bool:
    """Says whether the decoder is so narrow that glibc keeps its freed arrays without being asked.

    Then `allocator.keep_freed_memory` would only make the threads wait for each other. The width of
    a checkpoint or of a policy of one's own is not known yet, so it counts as wide.
    """
    policy = config.get("policy") or ConfigDict()
    is_known = policy.get("checkpoint") is None and policy.get("name") is None
    return is_known and policy.get("d_model", 0) <= SMALL_WIDTH


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
    steps_may_grow: bool = False,
    optional: Sequence[str] = (),
    part: Callable[[], str | None] = lambda: None,
    prepare: Callable[[ConfigDict], None] = lambda config: None,
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
      steps_may_grow: whether a workdir may be continued with a larger number of steps.
      optional: names of sections in the default config that other configs need not have.
      part: returns the name of the part of the results that this call makes, or None for all.
        Calls that make different parts may run at the same time.
      prepare: is called before JAX looks for its devices.
    """

    def flags_parser(argv: list[str]) -> list[str]:
        if several_processes:
            define_host_flags(flags.FLAGS)
        with _exits_in_one_line():
            if help.is_asked_for(argv):
                print(help.text(given_config(argv, ROOT / default_config), flags.FLAGS))
                sys.exit(0)
            parse(argv, flags.FLAGS, ROOT / default_config)
            check_sections(flags.FLAGS.config, argv, ROOT / default_config, optional)
        return argv[:1]

    def absl_main(argv: list[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend that it does not find
        config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
        is_small = _is_small(config)
        if not is_small:
            allocator.keep_freed_memory()
        compiler_flags.prefer_small_programs(is_small)
        with _exits_in_one_line(workdir, config):
            if several_processes:
                join_hosts(flags.FLAGS)
            prepare(config)
            execute(main, draw, config, workdir, validate, mesh_may_differ, steps_may_grow, part())

    app.run(absl_main, flags_parser=flags_parser)
    raise AssertionError("app.run exits")


def execute(
    main: Main,
    draw: Draw,
    config: ConfigDict,
    workdir: str | None,
    validate: Callable[[ConfigDict], None],
    mesh_may_differ: bool = True,
    steps_may_grow: bool = False,
    part: str | None = None,
) -> None:
    """Checks the folder and the config, then calls `main` and `draw` as `complete` does.

    Raises:
      FieldError: the config cannot be run. Nothing was written, unless `main` raised the error.
      FlagError: the folder cannot be used, or JAX finds no device of the kind in JAX_PLATFORMS.
        Nothing was written, unless `main` raised the error.
    """
    folder = check_folder(workdir)
    devices.check()
    validate(config)
    check_same_config(str(workdir), config, mesh_may_differ, steps_may_grow)
    is_new = not folder.exists()
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
    if writes_files and not (folder / SUMMARY).exists():
        devices.announce(config)
    try:
        with exclusive(folder, part) if writes_files else contextlib.nullcontext():
            if steps_may_grow and writes_files:
                extend(folder, config)
            complete(main, draw, config, folder, writes_files)
    except Exception as error:
        if is_new and writes_files and isinstance(error, (FieldError, FlagError)):
            with contextlib.suppress(OSError):  # it has files
                folder.rmdir()
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

    Raises:
      FieldError: the folder is finished, and a class of one's own has other code now.
    """
    if (folder / SUMMARY).exists():
        check_same_code(folder, config)
        if draws:
            print(f"{folder}: finished already; its figures are drawn again from its records")
    else:
        main(config, folder)
    if draws and (folder / SUMMARY).exists():
        print(folder / SUMMARY)
        for path in draw(folder):
            print(path)
        for reason in read_json(folder / SUMMARY).get("figures_left_out", []):
            print(f"not drawn: {reason}")


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
            error = by_name(error, config).with_value(lambda field: field_value(config, field))
            error = with_example(error, config)
        print(FlagError.of_field(error), file=sys.stderr)
        sys.exit(2)
    except FlagError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except DamagedFileError as error:
        print(FlagError("workdir", workdir, f"{error}: {RESTORE}"), file=sys.stderr)
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
