"""Checks the folder of an experiment's results, locks it, and writes the files that describe it.

A folder (workdir) holds the results of one config only.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from experiments.common.contents import of_policy
from staleness_grpo.errors import FieldError, FlagError, require_local
from staleness_grpo.runtime.environment import describe_environment
from staleness_grpo.runtime.records import flattened, plain, read_json, write_json

SUMMARY = "summary.json"  # an experiment writes this file last: a workdir that has it is finished

# Fields that a second call on a workdir may change: how checkpoints are saved, how many processes
# judge the rewards in how much time, and what is shown of a run beside its records.
FREE_PREFIXES = (
    "checkpoint.",
    "rewards.",
    "sinks.",
    "metrics.samples_every",
    "metrics.num_samples",
)
# A file of problems may be moved: `contents.check_same` compares what is in it.
MOVABLE = ("task.path",)
# The mesh of devices may change too, unless the experiment measures the mesh itself.
MESH_PREFIXES = ("mesh.",)


def check_folder(workdir: str | None) -> pathlib.Path:
    """Returns the folder of the results as an absolute path. The folder need not exist.

    Args:
      workdir: the folder as the user wrote it.

    Raises:
      FlagError: no folder is given, or it is not writable.
    """
    if not workdir:
        raise FlagError("workdir", "", "give a folder for the results")
    try:
        require_local(workdir, "workdir")
    except FieldError as error:
        raise FlagError("workdir", workdir, error.hint) from error
    folder = pathlib.Path(workdir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise FlagError("workdir", workdir, f"{existing} is a file: give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        hint = f"{existing} is not writable: give another folder, or make this one writable"
        raise FlagError("workdir", workdir, hint)
    return folder


def check_same_config(
    workdir: str | pathlib.Path,
    config: ConfigDict,
    mesh_may_differ: bool = True,
    steps_may_grow: bool = False,
) -> None:
    """Raises FlagError if a folder has results of a config that differs from the given one.

    An unset field equals an absent field, because older results may not have the field. A guard
    that is off equals an absent one. Fields under FREE_PREFIXES may differ.

    Args:
      workdir: the folder as the user wrote it. It need not exist.
      config: the given config.
      mesh_may_differ: whether fields under MESH_PREFIXES may differ too.
      steps_may_grow: whether `steps` may be larger than in the saved config.
    """
    config_file = pathlib.Path(workdir) / "config.json"
    if not config_file.exists():
        return
    try:
        saved = read_json(config_file)
        if not isinstance(saved, dict):
            raise ValueError("it is no JSON object")
        saved = flattened(saved)
    except (OSError, ValueError) as error:
        hint = f"the file config.json cannot be read ({error}): give another folder"
        raise FlagError("workdir", workdir, hint) from error
    given = flattened(json.loads(json.dumps(plain(config.to_dict()))))
    ignored_prefixes = FREE_PREFIXES + (MESH_PREFIXES if mesh_may_differ else ())
    if "guard.mode" not in saved and given.get("guard.mode") == "off":
        ignored_prefixes += ("guard.",)
    ignored = set(MOVABLE)
    decays = saved.get("optimizer.decay", "none") != "none"
    fixed_length = decays and "optimizer.decay_steps" not in saved
    if steps_may_grow and not fixed_length and saved.get("steps", math.inf) < config.steps:
        ignored.add("steps")
    for name in sorted(saved | given):
        saved_value = str(saved.get(name, "absent"))
        given_value = str(given.get(name, "absent"))
        is_free = name in ignored or name.startswith(ignored_prefixes)
        if saved_value != given_value and not is_free:
            difference = f"{name} is {saved_value} in the folder, {given_value} in this call"
            if name == "steps" and steps_may_grow and fixed_length:
                difference += ", and the learning rate falls to 0 at the last one (optimizer.decay)"
            hint = f"the folder holds results of another config ({difference}): give another folder"
            raise FlagError("workdir", workdir, hint)


def extend(folder: pathlib.Path, config: ConfigDict) -> None:
    """Makes a folder with results of fewer steps one that is to have `config.steps`.

    The old config.json and summary.json are kept, with their number of steps in the name.
    """
    config_file, summary_file = folder / "config.json", folder / SUMMARY
    if not config_file.exists() or (saved := read_json(config_file))["steps"] >= config.steps:
        return
    ending = f"_{saved['steps']}_steps.json"
    if summary_file.exists():
        summary_file.rename(folder / f"summary{ending}")
    write_json(folder / f"config{ending}", saved)
    write_json(config_file, saved | {"steps": config.steps})


@contextlib.contextmanager
def exclusive(folder: pathlib.Path, part: str | None = None) -> Iterator[None]:
    """Locks the folder, so that no second process of this machine writes the same results into it.

    The operating system releases the lock when this process ends or is killed. A file system
    without locks gives no protection: there, two processes can use the folder at the same time.

    Args:
      folder: the workdir.
      part: the name of the part of the results that this process writes; None for all of them.
        Several processes may write different parts at the same time.

    Raises:
      FlagError: another process holds the lock.
    """
    with contextlib.ExitStack() as stack:
        if part is None:
            stack.enter_context(_locked(folder, folder, os.O_RDONLY, fcntl.LOCK_EX))
        else:
            stack.enter_context(_locked(folder, folder, os.O_RDONLY, fcntl.LOCK_SH))
            own = folder / f".{part}.lock"
            stack.enter_context(_locked(folder, own, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX))
        yield


@contextlib.contextmanager
def _locked(folder: pathlib.Path, path: pathlib.Path, flags: int, kind: int) -> Iterator[None]:
    """Holds a lock on a path. Raises FlagError, about the folder, if another process has it."""
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "another process uses this folder: wait until it ends, or give another folder"
            raise FlagError("workdir", folder, hint) from error
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)


def write_run_files(
    workdir: pathlib.Path, config: ConfigDict, fingerprints: Mapping[str, str] | None = None
) -> None:
    """Writes environment.json and config.json into a new workdir; existing files are not changed.

    config.json comes last: a workdir that has it is complete, also after a kill.

    Args:
      workdir: the folder, which is created if it does not exist.
      config: the experiment's config.
      fingerprints: entries of environment.json that identify what the config only names; see
        `contents.fingerprints`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_file = workdir / "config.json"
    if not config_file.exists():
        contents = of_policy(config) | dict(fingerprints or {})
        write_json(workdir / "environment.json", describe_environment() | contents)
        write_json(config_file, config.to_dict())
