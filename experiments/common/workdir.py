"""Checks and marks the folder of an experiment's results, which holds one config's alone."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.environment import describe_environment
from staleness_grpo.runtime.records import plain, read_json, write_json

SUMMARY = "summary.json"  # a workdir that has it is finished

# Sections that a second call may change: how often a training is saved, and who judges its rewards.
MAY_DIFFER = ("checkpoint.", "rewards.")
# Where it is computed may change too, if results on another mesh are as good.
MESH = "mesh."


def check_workdir(
    workdir: str | None, config: ConfigDict, mesh_may_differ: bool = True
) -> pathlib.Path:
    """Returns the folder of the results, which need not exist.

    Raises:
      FlagError: it is not writable, or holds another config's results.
    """
    if not workdir:
        raise FlagError("workdir", "", "give a folder for the results")
    folder = pathlib.Path(workdir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise FlagError("workdir", workdir, f"{existing} is a file: give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        hint = f"{existing} is not writable: give another folder, or permission"
        raise FlagError("workdir", workdir, hint)
    record = folder / "config.json"
    if not record.exists():
        return folder
    try:
        saved = _flat(read_json(record))
    except (OSError, ValueError) as error:
        hint = f"its config.json cannot be read ({error}): give another"
        raise FlagError("workdir", workdir, hint) from error
    given = _flat(json.loads(json.dumps(plain(config.to_dict()))))
    free = (*MAY_DIFFER, MESH) if mesh_may_differ else MAY_DIFFER
    for name in sorted(saved | given):
        old, new = (str(fields.get(name, "absent")) for fields in (saved, given))
        if old != new and not name.startswith(free):
            difference = f"{name} is {old} there, {new} here"
            hint = f"holds another config's results ({difference}): give another"
            raise FlagError("workdir", workdir, hint)
    return folder


@contextlib.contextmanager
def in_use(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes of this machine out of the folder.

    The system forgets it when this process ends, or is killed.

    Raises:
      FlagError: if another process is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "another process is at work there: wait for its end, or give another folder"
            raise FlagError("workdir", folder, hint) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def check_problems(folder: pathlib.Path, config: ConfigDict, fingerprint: str | None) -> None:
    """Refuses problems that are not those of the results in the folder.

    The same flags may lead to others: a file can change, and so can a tokenizer.

    Raises:
      FieldError: naming the field that leads to the problems.
      FlagError: the record in the folder cannot be read.
    """
    record = folder / "environment.json"
    try:
        saved = read_json(record).get("problems") if record.exists() else None
    except (OSError, ValueError) as error:
        hint = f"its environment.json cannot be read ({error}): give another"
        raise FlagError("workdir", folder, hint) from error
    if saved not in (None, fingerprint):
        field = "path" if "path" in config.task else "name"
        reason = f"the problems, or their tokens, are not those that {folder} was started with"
        hint = f"{reason}: put them back, or give another workdir"
        raise FieldError(f"task.{field}", hint, config.task[field])


def _flat(config: dict, prefix: str = "") -> dict[str, Any]:
    """Turns {'a': {'b': 1, 'c': None}} into {'a.b': 1}.

    An unset field counts as none, since older results may not have it.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def write_run_files(workdir: pathlib.Path, config: ConfigDict, problems: str | None = None) -> None:
    """Writes config.json and environment.json of a new run; existing ones are left as they are.

    Args:
      workdir: the folder, which is made if it is not there.
      config: of the run.
      problems: the fingerprint of a text task, whose problems stand in files that the config only
        names.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").exists():
        write_json(workdir / "config.json", config.to_dict())
        described = describe_environment() | ({"problems": problems} if problems else {})
        write_json(workdir / "environment.json", described)
