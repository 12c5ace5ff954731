"""Imports a class of one's own by its name, package.module:Class or path/to/file.py:Class."""

import importlib
import inspect
import pathlib
import sys
import traceback
import types
from typing import Any

from staleness_grpo.errors import FieldError, did_you_mean


def load(name: str, field: str = "name") -> Any:
    """Returns the class or function that a name names.

    A module must be importable from the current folder or installed. The folder of a file is added
    to `sys.path`, so that worker processes can import the file too.

    Args:
      name: package.module:Class, or path/to/file.py:Class.
      field: the config field that has this name, for the error.

    Raises:
      FieldError: there is no such module, file or class, the import fails, or what has the name
        cannot be called.
    """
    place, _, member = name.rpartition(":")
    try:
        module = _import_file(place) if place.endswith(".py") else importlib.import_module(place)
    except FieldError as error:
        raise FieldError(field, error.hint, name) from error
    except Exception as error:  # the module is a program, and can raise any error
        if isinstance(error, ModuleNotFoundError) and error.name in _parents(place):
            hint = f"there is no module {error.name}: run from its folder, or give path/to/file.py"
            raise FieldError(field, f"{hint}:{member}", name) from error
        hint = f"importing {place} fails with {described(error)}: fix it"
        raise FieldError(field, hint, name) from error
    if not hasattr(module, member):
        hint = did_you_mean(member, vars(module), "write the name of a class in it")
        raise FieldError(field, f"{place} has no {member or 'class of this name'}: {hint}", name)
    found = getattr(module, member)
    kind = type(found).__name__
    if not callable(found):
        raise FieldError(field, f"this is a {kind} and no class: name a class", name)
    try:
        inspect.signature(found)
    except (TypeError, ValueError) as error:
        hint = f"the arguments of this {kind} are not known: name a class that is written in Python"
        raise FieldError(field, hint, name) from error
    return found


def described(error: Exception) -> str:
    """Returns kind and text of an error that a user's program raised, and the place in it."""
    if isinstance(error, SyntaxError):  # its text has the place
        return f"{type(error).__name__}: {error}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"


def _parents(module: str) -> set[str]:
    """Returns the names of a module and of the packages that it is in."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _import_file(place: str) -> types.ModuleType:
    """Imports a file by its name. Raises FieldError if it is absent or has a namesake."""
    path = pathlib.Path(place).absolute()
    if not path.is_file():
        raise FieldError("name", f"there is no file {place}: give the path of an existing file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module = importlib.import_module(path.stem)
    if pathlib.Path(module.__file__ or "").absolute() != path:
        hint = f"another module is named {path.stem} ({module.__file__}): rename the file"
        raise FieldError("name", hint)
    return module
