"""Reads problems from a file of JSON lines or from a Parquet file."""

import dataclasses
import decimal
import importlib.util
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from staleness_grpo.errors import FieldError, require, require_local
from staleness_grpo.runtime.records import TwiceError, fields_given_once

Messages = tuple[dict[str, str], ...]  # of a chat, each with "role" and "content"
MAX_SHOWN = 20  # largest number of columns that an error lists
PARQUET_START = b"PAR1"  # the first bytes of every Parquet file
FORM = 'write {"prompt": TEXT, "answer": TEXT}'  # the fix of most lines


@dataclasses.dataclass(frozen=True)
class TextProblem:
    """A question, and the reference with which the verifier compares the responses."""

    prompt: str | Messages
    reference: Any  # None if the verifier needs none
    # Where the problem stands in its file, for error messages: "line 3" or "row 3".
    place: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of prompts and answers that a config names; None where it names none."""

    prompt: str | None = None
    answer: str | None = None

    def chosen(self, names: Sequence[str], place: str) -> tuple[str, str]:
        """Returns the columns of prompt and answer, after a check that they are among `names`.

        Without a choice, they are "prompt" or "question", and "answer". A chosen column with dots,
        such as "reward_model.ground_truth", may be a field inside another column.

        Raises:
          FieldError: a column is absent. The message lists the columns that are there.
        """
        if self.prompt is None and {"prompt", "question"} <= set(names):
            raise row_error(
                place, "has both a prompt and a question", f"{FORM}, or choose prompt_column"
            )
        default_prompt = "prompt" if "prompt" in names else "question"
        prompt = default_prompt if self.prompt is None else self.prompt
        answer = "answer" if self.answer is None else self.answer
        others = len(names) - MAX_SHOWN
        shown = ", ".join(names[:MAX_SHOWN]) + (f" and {others} more" if others > 0 else "")
        shown = shown or "none"
        for field, choice, name in (
            ("prompt_column", self.prompt, prompt),
            ("answer_column", self.answer, answer),
        ):
            if name in names or (choice is not None and name.split(".")[0] in names):
                continue
            if choice is not None:
                hint = f"{place} has no such column: choose one of its columns ({shown})"
                raise FieldError(field, hint, choice)
            reason = f"has no text as its {name} (its columns: {shown})"
            raise row_error(place, reason, f"{FORM}, or choose {field}")
        return prompt, answer


BY_RULE = Columns()  # a config that names no columns


def row_error(place: str, reason: str, fix: str = FORM) -> FieldError:
    """Returns the error of a line or row that is not a problem."""
    return FieldError("path", f"{place} {reason}: {fix}")


def read_problems(path: str | pathlib.Path, columns: Columns = BY_RULE) -> list[TextProblem]:
    """Returns the problems of a JSON-lines file or a Parquet file, in the order of the file.

    A prompt is a text, or a list of messages with "role" and "content". An answer is a text or a
    number. Without a chosen column of answers, only the text after the last '####' of the answer to
    a "question" is kept, as in GSM8K.

    Args:
      path: the file.
      columns: the columns of prompts and answers.

    Raises:
      FieldError: a field names a file that cannot be read, has no problems, or has a line that is
        not a problem, or it names a column that is absent. The message has the number of the first
        such line.
    """
    require_local(str(path), "path")
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(PARQUET_START)) == PARQUET_START
        if is_parquet or path.suffix == ".parquet":
            rows = _parquet_rows(path, columns)
        else:
            # The encoding utf-8-sig accepts files with or without a byte-order mark.
            rows = _json_rows(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise FieldError("path", f"{reason}: give a JSON-lines file of problems") from error
    problems = [_problem(fields, place, columns) for place, fields in rows]
    require(len(problems) > 0, "path", "the file has no problems: give another file")
    return problems


def _json_rows(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the fields of each line. Raises FieldError if one is no JSON object."""
    lines = text.split("\n")  # not splitlines, which splits at U+2028; a JSON string may contain it
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            fields = json.loads(line, object_pairs_hook=fields_given_once)
        except TwiceError as error:
            raise row_error(place, f"has the field {error} twice") from error
        except (ValueError, RecursionError) as error:  # RecursionError: too many nested brackets
            raise row_error(place, "is not JSON") from error
        if not isinstance(fields, dict):
            raise row_error(place, "is not a JSON object")
        yield place, fields


def _parquet_rows(path: pathlib.Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """Returns the place and the fields of each row. Only the columns of problems are read.

    Raises:
      FieldError: the file cannot be read, a column is absent, or pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        fix = "pip install pyarrow (of the extra tasks), or give a JSON-lines file"
        raise FieldError("path", f"a Parquet file needs pyarrow: {fix}")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            chosen = columns.chosen(names, "the file")
            needed = {name if name in names else name.split(".")[0] for name in chosen}
            for name in sorted(needed):
                hint = f"the file has the column {name} twice: leave one of them out"
                require(names.count(name) < 2, "path", hint, path)
            table = file.read(columns=sorted(needed))
            rows = [
                {field.name: _as_written(row[field.name], field.type) for field in table.schema}
                for row in table.to_pylist()
            ]
    except (OSError, pyarrow.ArrowException) as error:
        hint = "give a whole Parquet file, or a JSON-lines file"
        raise FieldError("path", f"the Parquet file cannot be read ({error}): {hint}") from error
    return ((f"row {number}", fields) for number, fields in enumerate(rows, start=1))


def _as_written(value: Any, kind: Any) -> Any:
    """Returns a value of a Parquet column, where a narrow float is the number of its shortest text.

    A float32 of 0.1 is 0.10000000149011612 as a Python float, and no response has these digits.
    """
    from pyarrow import types

    if value is None:
        return None
    if types.is_float32(kind) or types.is_float16(kind):
        return float(str(kind.to_pandas_dtype()(value)))
    if types.is_struct(kind):
        return {field.name: _as_written(value[field.name], field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_as_written(item, kind.value_type) for item in value]
    return value


def _problem(fields: Mapping[str, Any], place: str, columns: Columns) -> TextProblem:
    """Returns the problem of a line or row. Raises FieldError if it has none."""
    prompt_column, answer_column = columns.chosen(list(fields), place)
    value = _look_up(fields, prompt_column, place, "prompt_column")
    prompt: str | Messages
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        prompt = tuple(_message(message, place, prompt_column) for message in value)
        if prompt[-1]["role"] == "assistant":
            raise row_error(
                place,
                f"has a {prompt_column} that ends with the assistant's message",
                "end with the message that is to be answered",
            )
        _text(prompt[-1]["content"], place, prompt_column)
    else:
        prompt = _text(value, place, prompt_column)
    value = _look_up(fields, answer_column, place, "answer_column")
    answer = _text(_number_as_text(value), place, answer_column)
    if prompt_column == "question" and columns.answer is None:
        _, marker, answer = answer.rpartition("####")
        if not marker or not answer.strip():  # an empty answer would reward an empty response
            raise row_error(
                place,
                "has a question whose answer has nothing after '####'",
                f"{FORM}, or choose answer_column=answer",
            )
    return TextProblem(prompt, answer.strip(), place)


def _look_up(fields: Mapping[str, Any], column: str, place: str, choice: str) -> Any:
    """Returns the value of a column, or of a field inside a column.

    Raises:
      FieldError: the column `choice` has no such field inside.
    """
    if column in fields:
        return fields[column]
    value: Any = fields
    for name in column.split("."):
        inside = list(value) if isinstance(value, Mapping) else []
        hint = f"{place} has no {name} there: choose one of ({', '.join(inside) or 'none'})"
        require(name in inside, choice, hint, column)
        value = value[name]
    return value


def _number_as_text(value: Any) -> Any:
    """Returns the text of a finite number, and any other value as it is."""
    is_number = isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool)
    # A whole number may be too large for `isfinite`, which makes a float of it.
    is_finite = is_number and (isinstance(value, int) or math.isfinite(value))
    return str(value) if is_finite else value


def _text(value: Any, place: str, column: str) -> str:
    """Returns a value that is a text with visible characters. Raises FieldError if it is not."""
    is_usual = column in ("prompt", "question", "answer")
    fix = FORM if is_usual else f"give each problem a text as its {column}"
    if not isinstance(value, str) or not value.strip():
        raise row_error(place, f"has no text as its {column}", fix)
    if re.search("[\ud800-\udfff]", value):
        reason = f"has half a surrogate pair, which is not a character, in its {column}"
        raise row_error(place, reason, fix)
    return value


def _message(message: Mapping[str, Any], place: str, column: str) -> dict[str, str]:
    """Returns a message of a chat. Raises FieldError unless it has "role" and "content" alone.

    A field without a value is ignored. Parquet adds such fields, if another message has them.
    """
    given = {name: value for name, value in message.items() if value is not None}
    if set(given) != {"role", "content"} or not all(isinstance(v, str) for v in given.values()):
        reason = f"has a message with the fields {', '.join(given) or 'none'} in its {column}"
        raise row_error(place, reason, 'write each message as {"role": TEXT, "content": TEXT}')
    _text(given["role"], place, f"{column}.role")
    if given["content"]:
        _text(given["content"], place, f"{column}.content")
    return given
