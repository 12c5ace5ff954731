"""Defines errors that the user can fix: a wrong field of a config, or a wrong flag."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

URL_HINT = "URLs cannot be used: give a path, of a bucket for example where it is mounted"
NOT_GIVEN = object()  # marks that the error does not know the field's value


class FieldError(ValueError):
    """Says that a field of a config cannot be used, and how to fix it.

    The code that owns a field raises this error, with the field's name inside its section. A caller
    that knows the section adds the section's name in front, with `below`. The command line prints
    the full name as a flag.

    Attributes:
      field: the field's name, with dots between sections ('lag.max_lag').
      hint: how to fix the field, as a sentence without a capital.
      value: the refused value, or NOT_GIVEN.
    """

    def __init__(self, field: str, hint: str, value: Any = NOT_GIVEN):
        shown = "" if value is NOT_GIVEN else f"={value}"
        super().__init__(" ".join(f"{field}{shown}: {hint}".split()))
        self.field, self.hint, self.value = field, hint, value

    def below(self, section: str) -> "FieldError":
        """Returns the same error with the section's name in front of the field's name."""
        return FieldError(f"{section}.{self.field}", self.hint, self.value)

    def with_value(self, lookup: Callable[[str], Any]) -> "FieldError":
        """Returns the same error with its value; `lookup(field)` gives a value it does not have."""
        if self.value is not NOT_GIVEN:
            return self
        try:
            return FieldError(self.field, self.hint, lookup(self.field))
        except (KeyError, TypeError):  # the config lacks the field, so it has no value
            return self


class FlagError(ValueError):
    """Says that a flag cannot be used, in one line: the flag, its value, and how to fix it."""

    def __init__(self, flag: str, value: Any, hint: str):
        super().__init__(" ".join(f"--{flag}={value}: {hint}".split()))

    @classmethod
    def of_variable(cls, variable: str, value: str, hint: str) -> "FlagError":
        """Returns the error of an environment variable that cannot be used."""
        error = cls(variable, value, hint)
        error.args = (str(error).removeprefix("--"),)
        return error

    @classmethod
    def of_field(cls, error: FieldError) -> "FlagError":
        """Returns the error of a config field as an error of the flag that sets the field."""
        value = "" if error.value is NOT_GIVEN else error.value
        return cls(f"config.{error.field}", value, error.hint)


def counted(number: int, noun: str, ending: str = "s") -> str:
    """Returns a number with its noun, as in "1 device" and "2 devices"."""
    return f"{number} {noun}{'' if number == 1 else ending}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """Returns a hint that names the most similar known word; `otherwise` if none is similar."""
    similar = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {similar[0]}?" if similar else otherwise


def require(condition: bool, field: str, hint: str, value: Any = NOT_GIVEN) -> None:
    """Raises FieldError unless the condition holds."""
    if not condition:
        raise FieldError(field, hint, value)


def require_choice(fields: Mapping[str, Any], name: str, choices: tuple) -> None:
    """Raises FieldError unless `fields[name]` is one of the choices.

    A None among the choices accepts an unset field. The error message does not list it.
    """
    hint = f"choose one of {', '.join(str(choice) for choice in choices if choice is not None)}"
    require(fields[name] in choices, name, hint, fields[name])


def require_at_least(fields: Mapping[str, Any], bounds: Mapping[str, float]) -> None:
    """Raises FieldError for the first of the named fields that is below its bound."""
    for name, bound in bounds.items():
        require(fields[name] >= bound, name, f"give a number >= {bound}", fields[name])


def require_local(path: str | None, field: str) -> None:
    """Raises FieldError if a path is a URL. Buckets cannot be used, because files are not enough.

    Checkpoints, locks and appended records need a file system.
    """
    is_url = path is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path) is not None
    require(not is_url, field, URL_HINT, path)


def require_positive(fields: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raises FieldError for the first of the named fields that is not > 0."""
    for name in names:
        require(fields[name] > 0, name, "give a number > 0", fields[name])
