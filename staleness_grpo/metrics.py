"""A run's records: config.json, environment.json, metrics.jsonl, summary.json; and its progress bar."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import rich.console
import rich.progress


def plain(value):
    """JSON's types: NumPy and JAX scalars and arrays as numbers and lists, non-finite numbers as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: pathlib.Path, value) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}.partial")  # jobs may share a folder
    temporary.write_text(json.dumps(plain(value), indent=2) + "\n")
    temporary.replace(path)


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def environment() -> dict:
    """What a number depends on besides the config: versions, commit, devices."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "staleness_grpo")
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "commit": git.stdout.strip() or None,
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def write_run_files(workdir: pathlib.Path, config, problems: str | None = None) -> None:
    """config.json and environment.json of a new run; an existing config.json is left as it is.

    `problems` is the fingerprint of a text task, which stands in files that the config only names.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / "config.json").exists():
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "environment.json", environment() | ({"problems": problems} if problems else {}))


class MetricsWriter:
    """Appends one JSON line per record, each on disk before the next is taken.

    A resumed run keeps the first `num_kept` records of the file that is there. What an interrupted run wrote after
    them is put aside under a new name: records are never written over.
    """

    def __init__(self, path: pathlib.Path, num_kept: int = 0):
        path = pathlib.Path(path)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) > num_kept:
            number = 1
            while (aside := path.with_name(f"{path.stem}.interrupted-{number}{path.suffix}")).exists():
                number += 1
            aside.write_bytes(b"".join(lines[num_kept:]))
            os.truncate(path, sum(map(len, lines[:num_kept])))
        self._file = path.open("ab", buffering=0)

    def write(self, record: dict) -> None:
        """Appends one record; raises OSError (a full disk) with the records before it intact."""
        line = (json.dumps(plain(record)) + "\n").encode()
        start, written = self._file.tell(), 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            self._file.truncate(start)  # a part of a record would leave the whole file unreadable
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Progress:
    """A progress bar on a terminal; silent in a pipe. A context manager."""

    def __init__(self, description: str, total: int, done: int = 0):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()

    def advance(self, note: str = "") -> None:
        """One unit done; `note` stands beside the bar."""
        self._bar.update(self._task, advance=1, note=note)
