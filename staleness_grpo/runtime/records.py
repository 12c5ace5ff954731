"""Reads and writes JSON and JSON lines: one reader, one appender, one atomic replace."""

import contextlib
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Converts a value to JSON's types.

    NumPy and JAX scalars and arrays become numbers and lists. NaN and infinities become null. The
    keys of dicts stay as they are.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file to write. The file replaces `path` when the block ends.

    After an error in the block, `path` stays as it was. A reader sees the old file or the new one,
    never a part. Several jobs may share the folder.
    """
    writer = f"{platform.node()}-{os.getpid()}"
    temporary = path.with_name(f"{path.stem}.{writer}.partial{path.suffix}")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=2) + "\n", encoding="utf-8")


RESTORE = "restore it, or give another folder"  # the fix of a damaged file


class DamagedFileError(ValueError):
    """Says that a file of records cannot be used; the message names the file, and the line."""


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file. Raises DamagedFileError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is not JSON ({error})") from error


def flattened(config: dict, prefix: str = "") -> dict[str, Any]:
    """Returns {'a.b': 1} for {'a': {'b': 1, 'c': None}}: unset fields (None) are left out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


class TwiceError(ValueError):
    """Says that an object of JSON has a field twice; the message is the name of the field."""


def fields_given_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the fields of an object; for `object_pairs_hook` of json. Raises TwiceError."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise TwiceError(name)
        fields[name] = value
    return fields


def json_line(record: dict) -> bytes:
    """Returns a record as one line of JSON."""
    return (json.dumps(plain(record)) + "\n").encode()


def write_jsonl(path: pathlib.Path, records: Iterable[dict]) -> None:
    """Writes a whole JSON-lines file, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(b"".join(map(json_line, records)))


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """Reads the records of a JSON-lines file; ignores an incomplete last line.

    Raises:
      DamagedFileError: another line is no JSON object.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n") and not _is_json(lines[-1]):
        lines.pop()
    records = []
    for number, line in enumerate(lines, start=1):
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DamagedFileError(f"{place} is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise DamagedFileError(f"{place} is not a JSON object")
        records.append(record)
    return records


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class Appender:
    """Appends records to a JSON-lines file, each written whole before the next is taken.

    Opening removes an incomplete last line, left by a killed process. A complete record whose
    newline is missing gets it.

    Args:
      path: the file; it is made if it does not exist.
      num_kept: how many records of the file stay, by default all. Later records are moved to
        NAME.interrupted-N, so nothing is lost.
      durable: whether `append` also waits until the record is on the disk itself. The record then
        survives a loss of power.
    """

    def __init__(self, path: pathlib.Path, num_kept: int | None = None, durable: bool = False):
        if path.exists():
            if num_kept is not None:
                _set_aside(path, num_kept)
            _end_last_line(path)
        self._durable = durable
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> "Appender":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, record: dict) -> None:
        """Adds one record.

        Raises:
          OSError: the record cannot be written, as on a full disk. Earlier records stay intact.
        """
        line = json_line(record)
        start, written = self._file.tell(), 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError:
            # A part of a record would leave the whole file unreadable.
            self._file.truncate(start)
            self._file.seek(start)
            raise
        if self._durable:
            os.fsync(self._file.fileno())


def _end_last_line(path: pathlib.Path) -> None:
    """Makes the file end with a newline: completes the last record, or removes a part of one."""
    with path.open("rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        content = file.read()
        start = content.rfind(b"\n") + 1
        if _is_json(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)


def _set_aside(path: pathlib.Path, num_kept: int) -> None:
    """Moves the records behind the first `num_kept` to a file of a new name."""
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) > num_kept:
        _unused_name(path).write_bytes(b"".join(lines[num_kept:]))
        os.truncate(path, sum(map(len, lines[:num_kept])))


def _unused_name(path: pathlib.Path) -> pathlib.Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.interrupted-{number}{path.suffix}")).exists():
        number += 1
    return aside
