"""Reads the rows of a log: JSON lines, a JSON document, or CSV; a cut last line is left out."""

import codecs
import csv
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import TwiceError, fields_given_once
from staleness_grpo.runtime.tables import TableError, csv_rows, is_absent

HISTORY = "log_history"  # the list of records in a document of the Transformers trainer


@dataclasses.dataclass(frozen=True)
class Line:
    """Holds the fields of one record, and where it stands ('line 3')."""

    fields: dict[str, Any]
    where: str


@dataclasses.dataclass(frozen=True)
class Lines:
    """Holds the records of a log in the order of the file, and sentences for its notes."""

    path: pathlib.Path
    lines: list[Line]
    notes: list[str]

    @functools.cached_property
    def filled(self) -> dict[str, bool]:
        """Returns the columns in their order, and whether any record has a value there."""
        filled: dict[str, bool] = {}
        for line in self.lines:
            for name, value in line.fields.items():
                filled[name] = filled.get(name, False) or not is_absent(value)
        return filled

    def refuse(self, reason: str) -> FlagError:
        """Returns an error that names the file."""
        return FlagError("log", self.path, reason)

    def number(self, line: Line, name: str) -> float | None:
        """Returns a field as a float, which may be infinite. None: the cell is empty.

        Raises:
          FlagError: the field is no number.
        """
        value = line.fields.get(name)
        if is_absent(value):
            return None
        try:
            if isinstance(value, (str, int, float)) and not isinstance(value, bool):
                return float(value)
        except (ValueError, OverflowError):
            pass
        reason = f"{line.where}: {name} is {value!r}: give a number, or leave the cell empty"
        raise self.refuse(reason)


def read_lines(path: pathlib.Path, about: str, is_document: bool) -> Lines:
    """Returns the records of a file.

    The first character tells JSON from CSV. A last line that is not whole is left out, and noted:
    its writer was stopped. In CSV without a newline at the end, the last cell may be cut. So that
    line is left out too, unless the cell is quoted.

    Args:
      path: the file.
      about: what the format reads, for messages.
      is_document: whether the file is one JSON document with a list `log_history`.

    Raises:
      FlagError: there is no such file, or it cannot be read as such records.
    """
    found = Lines(path, [], [])
    try:
        text = _text(path.read_bytes())
    except FileNotFoundError as error:
        raise found.refuse("it does not exist: give a file") from error
    except IsADirectoryError as error:
        raise found.refuse(f"it is a folder: give a file, {about}") from error
    except UnicodeDecodeError as error:
        raise found.refuse(f"the file is not text: give {about}") from error
    except OSError as error:
        raise found.refuse(f"it cannot be read: {error.strerror}") from error
    if not text.strip():
        raise found.refuse("the file is empty: give a log with records")
    if "\0" in text:
        raise found.refuse(f"the file is not text: give {about}")
    if not is_document and f'"{HISTORY}"' in text:
        raise found.refuse(f"the file has a list {HISTORY}: give --format=trl, or another file")
    if is_document:
        rows = _document(found, text, about)
    elif text.lstrip()[0] in "{[":
        rows = _json_lines(found, text)
    else:
        rows = _csv_lines(found, text)
    found.lines.extend(rows)
    if not found.lines:
        raise found.refuse("the file has no whole record: give a log with records")
    return found


def _text(content: bytes) -> str:
    """Returns the text of a file; bytes of a character that is cut at the end are left out.

    Raises:
      UnicodeDecodeError: the file is not UTF-8.
    """
    text, _ = codecs.utf_8_decode(content.removeprefix(codecs.BOM_UTF8), "strict", False)
    return io.StringIO(text, newline=None).read()


def _document(found: Lines, text: str, about: str) -> Iterator[Line]:
    try:
        document = json.loads(text, object_pairs_hook=fields_given_once)
    except TwiceError as error:
        raise found.refuse(f"the field {error} is given twice: keep one of them") from error
    except (ValueError, RecursionError) as error:
        raise found.refuse(f"the file is not one whole JSON document: give {about}") from error
    records = document.get(HISTORY) if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise found.refuse(f"the file has no list {HISTORY}: give {about}")
    for number, fields in enumerate(records, start=1):
        if not isinstance(fields, dict):
            raise found.refuse(f"record {number} of {HISTORY} is not a JSON object: give {about}")
        yield Line(fields, f"record {number} of {HISTORY}")


def _json_lines(found: Lines, text: str) -> Iterator[Line]:
    lines = text.split("\n")  # not `splitlines`: a text in JSON may hold other line ends
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=fields_given_once)
        except TwiceError as error:
            reason = f"line {number} gives the field {error} twice: keep one of them"
            raise found.refuse(reason) from error
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline after it
                found.notes.append(f"The last line, line {number}, is cut, and was left out.")
                return
            reason = f"line {number} is not JSON: remove it, or give a whole log"
            raise found.refuse(reason) from error
        if not isinstance(fields, dict):
            raise found.refuse(f"line {number} is not a JSON object: give JSON lines or CSV")
        data = fields.get("data")
        if isinstance(data, dict):  # {"step": 3, "data": {...}}, as verl writes it
            fields = data | {name: value for name, value in fields.items() if name != "data"}
        yield Line(fields, f"line {number}")


def _csv_lines(found: Lines, text: str) -> Iterator[Line]:
    whole, newline, last = text.rpartition("\n")
    if last.strip() and newline and not _is_whole(last, whole.partition("\n")[0]):
        found.notes.append("The last line has no end and may be cut, so it was left out.")
        text = whole + newline
    try:
        for number, cells in csv_rows(io.StringIO(text)):
            yield Line(dict(cells), f"line {number}")
    except TableError as error:
        raise found.refuse(f"line {error.line}: {error.reason}: give a whole table") from error


def _is_whole(last: str, header: str) -> bool:
    """Returns whether a line without a newline has all cells, and ends with a closed quote."""
    try:
        (cells,), (names,) = csv.reader([last], strict=True), csv.reader([header], strict=True)
    except csv.Error:
        return False
    return last.rstrip().endswith('"') and len(cells) == len(names)
