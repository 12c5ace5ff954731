"""Reads the cells of tables that other tools export: CSV, and cells that hold nothing."""

import csv
import math
from collections.abc import Iterable, Iterator
from typing import Any


class TableError(ValueError):
    """Says that a line of a table cannot be read.

    Attributes:
      line: the number of the line, from 1.
      reason: what is wrong with it.
    """

    def __init__(self, line: int, reason: str):
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


def is_absent(value: Any) -> bool:
    """Returns whether a cell holds nothing, as the tools that export tables write it."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan", "null", "none")
    return value is None or (isinstance(value, float) and math.isnan(value))


def csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line number and the cells of each row of a CSV table with a header.

    Raises:
      TableError: the header names a column twice, a row has not the header's number of cells, or
        a line is not CSV.
    """
    reader = csv.DictReader(lines, strict=True)
    try:
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise TableError(1, "the header names a column twice")
        for row in reader:
            if None in row or None in row.values():
                reason = f"the row has not the {len(header)} cells of the header"
                raise TableError(reader.line_num, reason)
            yield reader.line_num, dict(row)
    except csv.Error as error:
        line = reader.reader.line_num  # that of the DictReader is still of the row before
        raise TableError(line, f"the row is not CSV: {error}") from error
