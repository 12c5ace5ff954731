"""Defines the errors that a person can fix: in a field of a config, or in a flag."""

from collections.abc import Callable, Mapping
from typing import Any

NOT_GIVEN = object()  # the value of a field that the error does not know


class FieldError(ValueError):
    """A field of a configuration cannot be used.

    Whoever owns the field raises this, with the field's name in its own section. Callers that know
    the section put it in front (`below`), and the command line spells the whole as a flag.

    Attributes:
      field: the name, with dots between sections ('lag.max_lag').
      hint: what to do, as a sentence without a capital.
      value: the value that was refused, or NOT_GIVEN.
    """

    def __init__(self, field: str, hint: str, value: Any = NOT_GIVEN):
        shown = "" if value is NOT_GIVEN else f"={value}"
        super().__init__(" ".join(f"{field}{shown}: {hint}".split()))
        self.field, self.hint, self.value = field, hint, value

    def below(self, section: str) -> "FieldError":
        """Returns the same error with the field's name as seen from outside its section."""
        return FieldError(f"{section}.{self.field}", self.hint, self.value)

    def with_value(self, lookup: Callable[[str], Any]) -> "FieldError":
        """Returns the same error with the refused value, looked up by the field's name."""
        if self.value is not NOT_GIVEN:
            return self
        try:
            return FieldError(self.field, self.hint, lookup(self.field))
        except (KeyError, TypeError):  # a field that is missing has no value
            return self


class FlagError(ValueError):
    """A command cannot be run. The message is one line: flag, value, fix."""

    def __init__(self, flag: str, value: Any, hint: str):
        super().__init__(" ".join(f"--{flag}={value}: {hint}".split()))

    @classmethod
    def of_field(cls, error: FieldError) -> "FlagError":
        """Spells a field of the config as the flag that sets it."""
        value = "" if error.value is NOT_GIVEN else error.value
        return cls(f"config.{error.field}", value, error.hint)


def require(condition: bool, field: str, hint: str, value: Any = NOT_GIVEN) -> None:
    """Raises FieldError unless the condition holds."""
    if not condition:
        raise FieldError(field, hint, value)


def require_choice(fields: Mapping[str, Any], name: str, choices: tuple) -> None:
    """Raises FieldError unless `fields[name]` is one of the choices; a None there means unset."""
    hint = f"choose one of {', '.join(str(choice) for choice in choices if choice is not None)}"
    require(fields[name] in choices, name, hint, fields[name])


def require_at_least(fields: Mapping[str, Any], bounds: Mapping[str, float]) -> None:
    """Raises FieldError for the first of the named fields that is below its bound."""
    for name, bound in bounds.items():
        require(fields[name] >= bound, name, f"give a number >= {bound}", fields[name])


def require_positive(fields: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raises FieldError for the first of the named fields that is not > 0."""
    for name in names:
        require(fields[name] > 0, name, "give a number > 0", fields[name])
