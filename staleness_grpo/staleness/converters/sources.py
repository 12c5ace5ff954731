"""Reads the records of trainers: JSON lines, CSV tables, and folders of such files.

Weights & Biases and pandas write floats for integers, and NaN, null or nothing for absent cells.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from staleness_grpo.runtime.tables import TableError, csv_rows, is_absent
from staleness_grpo.staleness.trace import TraceError, parsed

STEP_FOLDER = re.compile(r"step_(\d+)")
PEEKED = 4096  # characters of a file that tell JSON lines from CSV


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds one record of a trainer, and where it stands."""

    fields: dict[str, Any]
    where: str  # for messages: 'traces.jsonl line 3'
    folder_step: int | None = None  # N of the nearest folder step_N above the file

    def refuse(self, reason: str) -> TraceError:
        """Returns an error that names the record."""
        return TraceError(f"{self.where}: {reason}")

    def value(self, name: str) -> Any:
        """Returns a field of the record. None: the field is absent, or its cell is empty."""
        value = self.fields.get(name)
        return None if is_absent(value) else value

    def inside(self, *names: str) -> "Record":
        """Returns the object in the object ... of these names; without fields if it is absent."""
        fields: Any = self.fields
        for name in names:
            fields = fields.get(name) if isinstance(fields, dict) else None
        return dataclasses.replace(self, fields=fields if isinstance(fields, dict) else {})

    def integer(self, name: str) -> int:
        """Returns a field as an int. Raises TraceError if it is absent or no whole number."""
        value = self.value(name)
        if value is None:
            raise self.refuse(f"the field {name} is absent")
        if type(value) is int:
            return value
        number = self.number(name)
        if not number.is_integer():
            raise self.refuse(f"{name} is {value!r}, not an integer")
        return int(number)

    def name(self, field: str) -> int | str | None:
        """Returns a field that names something; None if it is absent.

        Raises:
          TraceError: it is a list, an object or a truth value.
        """
        value = self.value(field)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if value is None or (isinstance(value, (int, str)) and not isinstance(value, bool)):
            return value
        raise self.refuse(f"{field} is {value!r}: give a whole number or a text")

    def number(self, name: str) -> float:
        """Returns a field as a finite float. Raises TraceError if it is none."""
        value = self.value(name)
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.refuse(f"{name} is {value!r}, not a number")
        return number


def files(path: pathlib.Path, patterns: tuple[str, ...]) -> list[pathlib.Path]:
    """Returns the file, or the files of a folder that match a pattern, by the numbers in names.

    Raises:
      TraceError: no file of the folder matches.
      OSError: there is no such path.
    """
    if not path.is_dir():
        path.stat()
        return [path]
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}, key=_natural)
    if not found:
        raise TraceError(f"the folder has no {' and no '.join(patterns)}: give one that has")
    return found


def _natural(path: pathlib.Path) -> list[tuple[int, str]]:
    """Returns a key that sorts step_9 before step_10."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def records(paths: Iterable[pathlib.Path], root: pathlib.Path) -> Iterator[Record]:
    """Returns the records of files, in their order. Raises TraceError or OSError."""
    for path in paths:
        name = path.relative_to(root).as_posix() if path != root else path.name
        matches = [STEP_FOLDER.fullmatch(folder.name) for folder in path.resolve().parents]
        folder_step = next((int(match[1]) for match in matches if match), None)
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            start = file.read(PEEKED)
            file.seek(0)
            if "\0" in start:
                raise TraceError(f"{name}: the file is not text: give JSON lines or CSV")
            rows = _json_rows if start.lstrip()[:1] in ("{", "[") else _csv_rows
            for number, fields in rows(file, name):
                yield Record(fields, f"{name} line {number}", folder_step)


def _json_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, parsed(line, f"{name} line {number}")


def _csv_rows(file: TextIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from csv_rows(file)
    except TableError as error:
        raise TraceError(f"{name} line {error.line}: {error.reason}") from error
