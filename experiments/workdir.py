"""The folder of an experiment's results: writable, and of one config alone."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from staleness_grpo import metrics
from staleness_grpo.config import ConfigError, FlagError

# How often a training is saved, and who judges its rewards.
MAY_DIFFER = ("checkpoint.", "rewards.")
MESH = "mesh."  # and where it is computed: a run may go on on other devices


def check_workdir(workdir: str | None, config: ConfigDict, mesh_may_differ: bool = True) -> pathlib.Path:
    """The results' folder, which need not exist: writable, and free of another config's results. Raises FlagError."""
    if not workdir:
        raise FlagError("workdir", "", "give a folder for the results")
    folder = pathlib.Path(workdir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise FlagError("workdir", workdir, f"{existing} is a file: give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FlagError("workdir", workdir, f"{existing} is not writable: give another folder, or permission")
    record = folder / "config.json"
    if record.exists():
        try:
            theirs = _flat(json.loads(record.read_text()))
        except (OSError, ValueError) as error:
            raise FlagError("workdir", workdir, f"its config.json cannot be read ({error}): give another") from error
        ours = _flat(json.loads(json.dumps(metrics.plain(config.to_dict()))))
        for name in sorted(theirs | ours):
            if name.startswith((*MAY_DIFFER, MESH) if mesh_may_differ else MAY_DIFFER):
                continue
            there, here = (str(fields[name]) if name in fields else "absent" for fields in (theirs, ours))
            if there != here:
                difference = f"{name} is {there} there, {here} here"
                raise FlagError("workdir", workdir, f"holds another config's results ({difference}): give another")
    return folder


@contextlib.contextmanager
def in_use(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes of this machine out of the folder; the system forgets it when this one ends, or is killed.

    Raises:
      FlagError: if another process is at work there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            mend = "another process is at work there: wait for its end, or give another folder"
            raise FlagError("workdir", folder, mend) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def check_problems(folder: pathlib.Path, config: ConfigDict, fingerprint: str | None) -> None:
    """Refuses problems that are not those of the results in the folder. Raises FlagError.

    The same flags may lead to others: a file can change, and so can a tokenizer.
    """
    record = folder / "environment.json"
    try:
        theirs = json.loads(record.read_text()).get("problems") if record.exists() else None
    except (OSError, ValueError) as error:
        raise FlagError("workdir", folder, f"its environment.json cannot be read ({error}): give another") from error
    if theirs not in (None, fingerprint):
        field = "path" if "path" in config.task else "name"
        reason = f"the problems, or their tokens, are not those that {folder} was started with"
        raise ConfigError(f"task.{field}", config.task[field], f"{reason}: put them back, or give another workdir")


def _flat(config: dict, prefix: str = "") -> dict:
    """{'a': {'b': 1, 'c': None}} as {'a.b': 1}: an unset field is as good as none, which older results may not have."""
    flat = {}
    for name, value in config.items():
        if value is None:
            continue
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
