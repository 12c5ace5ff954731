"""Makes a task by its name. A task provides prompts by index and judges responses."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from staleness_grpo.errors import FieldError

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
# These tasks use the tokenizer of a checkpoint.
TEXT_TASKS = ("jsonl", "reasoning_gym", "stories")


def make_task(config: Mapping[str, Any], checkpoint: str | None = None) -> "Task":
    """Returns the task `config["name"]`, made with the other entries that are not None.

    Args:
      config: `config.task`.
      checkpoint: the folder whose tokenizer a text task uses.

    Raises:
      FieldError: the name is unknown, a field is missing or unknown, or the task does not accept a
        value. The error names the field inside `config.task`.
      ModelFolderError: the folder has no tokenizer.
    """
    arguments = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in config.items()
        if value is not None
    }
    name = arguments.pop("name")
    if name not in TASKS:
        raise FieldError("name", f"choose one of {', '.join(TASKS)}")
    make = _task_maker(name)
    _check_fields(name, arguments, task_fields(name))
    if name in TEXT_TASKS:
        from staleness_grpo.policy.huggingface import tokenizer

        if checkpoint is None:
            hint = f"the task {name} needs a tokenizer: set policy.checkpoint to a model folder"
            raise FieldError("name", hint)
        arguments["tokenizer"] = tokenizer.load(checkpoint)
    return make(**arguments)


def task_fields(name: str) -> dict[str, inspect.Parameter]:
    """Returns the fields that `config.task` may have for this task, except `name`."""
    fields = dict(inspect.signature(_task_maker(name)).parameters)
    fields.pop("tokenizer", None)  # the checkpoint provides it
    return fields


def fields_hint(name: str) -> str:
    """Returns the hint for missing fields: only a config can add fields; flags cannot add them."""
    fields = ", ".join(task_fields(name))
    return f"give a config whose task section has the fields of {name} ({fields})"


def _task_maker(name: str) -> Callable[..., "Task"]:
    """Imports the callable that makes the task of this name."""
    module_name, callable_name = TASKS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module_name}"), callable_name)


def _check_fields(
    name: str, arguments: Mapping[str, Any], fields: Mapping[str, inspect.Parameter]
) -> None:
    """Raises FieldError if an argument is no field of the task, or if a field is missing."""
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
        raise FieldError("name", f"the task {name} {' and '.join(reasons)}: {fields_hint(name)}")
