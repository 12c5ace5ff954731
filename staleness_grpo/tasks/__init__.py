"""Makes a task by its name. A task provides prompts by index and judges responses."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from staleness_grpo.errors import FieldError
from staleness_grpo.runtime import importing

if TYPE_CHECKING:  # reward workers import this package but should not import JAX
    from staleness_grpo.tasks.base import Task

# Name of a task -> MODULE.CALLABLE that makes the task. The module is imported only when its task
# is used, because some tasks need packages that other tasks do not need.
TASKS = {
    "arithmetic": "arithmetic.ArithmeticTask",
    "enumerable": "enumerable.EnumerableTask",
    "jsonl": "text.jsonl_task",
    "reasoning_gym": "text.reasoning_gym_task",
    "stories": "stories.stories_task",
}
# These tasks use the tokenizer of a checkpoint. So does a task of one's own with an argument of
# this name.
TEXT_TASKS = ("jsonl", "reasoning_gym", "stories")
TOKENIZER = "tokenizer"


def make_task(config: Mapping[str, Any], checkpoint: str | None = None) -> "Task":
    """Returns the task `config["name"]`, made with the other entries that are not None.

    Args:
      config: `config.task`. The name is a key of TASKS, or names a class of one's own: as
        package.module:Class, or as path/to/file.py:Class.
      checkpoint: the folder whose tokenizer a text task uses.

    Raises:
      FieldError: the name is unknown, a field is missing or unknown, the task does not accept a
        value, or the constructor of one's own class fails. The error names the field inside
        `config.task`.
      ModelFolderError: the folder has no tokenizer.
    """
    name: str = config["name"]
    arguments = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in config.items()
        if value is not None and field != "name"
    }
    make = _task_maker(name)
    _check_fields(name, arguments, task_fields(name))
    if uses_tokenizer(name):
        from staleness_grpo.policy.huggingface import tokenizer

        if checkpoint is None:
            hint = f"the task {name} needs a tokenizer: set policy.checkpoint to a model folder"
            raise FieldError("name", hint)
        arguments[TOKENIZER] = tokenizer.load(checkpoint)
    try:
        return make(**arguments)
    except (FieldError, ModuleNotFoundError):
        raise
    except Exception as error:  # the class is a program, and can raise any error
        if not is_own(name):
            raise
        reason = f"its constructor fails with {importing.described(error)}"
        raise FieldError("name", f"{reason}: correct the class or its fields", name) from error


def is_own(name: str) -> bool:
    """Says whether a name is that of a class of one's own."""
    return ":" in name


def uses_tokenizer(name: str) -> bool:
    """Says whether the task of this name is made with the tokenizer of a checkpoint."""
    return TOKENIZER in inspect.signature(_task_maker(name)).parameters


def task_fields(name: str) -> dict[str, inspect.Parameter]:
    """Returns the fields that `config.task` may have for this task, except `name`.

    Raises:
      FieldError: there is no such task.
    """
    fields = dict(inspect.signature(_task_maker(name)).parameters)
    fields.pop(TOKENIZER, None)  # the checkpoint provides it
    return fields


def _task_maker(name: str) -> Callable[..., "Task"]:
    """Imports the callable that makes the task of this name. Raises FieldError."""
    if is_own(name):
        return importing.load(name)
    if name not in TASKS:
        own = "name a class of your own as package.module:Class or file.py:Class"
        raise FieldError("name", f"choose one of {', '.join(TASKS)}, or {own}", name)
    module_name, callable_name = TASKS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module_name}"), callable_name)


def _check_fields(
    name: str, arguments: Mapping[str, Any], fields: Mapping[str, inspect.Parameter]
) -> None:
    """Raises FieldError if an argument is no field of the task, or if a field is missing."""
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in fields.values()):
        return
    missing = [
        field
        for field, parameter in fields.items()
        if parameter.default is inspect.Parameter.empty and field not in arguments
    ]
    unknown = [field for field in arguments if field not in fields]
    reasons = []
    if missing:
        reasons.append(f"needs the fields {', '.join(missing)}")
    if unknown:
        reasons.append(f"has no field {' or '.join(unknown)}")
    if reasons:
        hint = f"set or remove them; its fields are {', '.join(fields) or 'none'}"
        raise FieldError("name", f"the task {name} {' and '.join(reasons)}: {hint}")
