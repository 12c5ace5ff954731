"""Makes tasks: prompts by index, and the rewards of responses to them."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from staleness_grpo.errors import FieldError

if TYPE_CHECKING:  # the workers that judge rewards import this package, and should not import JAX
    from staleness_grpo.tasks.base import Task

# name -> MODULE.CALLABLE, which makes the task. It is imported on use, because one task may need
# packages that the others do without.
TASKS = {
    "arithmetic": "arithmetic.ArithmeticTask",
    "enumerable": "enumerable.EnumerableTask",
    "jsonl": "text.jsonl_task",
    "reasoning_gym": "text.reasoning_gym_task",
    "stories": "text.stories_task",
}
# Their tokens are those of a checkpoint's tokenizer.
TEXT_TASKS = ("jsonl", "reasoning_gym", "stories")


def make_task(config: Mapping[str, Any], checkpoint: str | None = None) -> "Task":
    """Makes the task `config["name"]`; the other entries that are not None are its arguments.

    Args:
      config: `config.task`.
      checkpoint: the folder whose tokenizer a text task uses.

    Raises:
      FieldError: the name is unknown, a field is missing, the task has no such field, or it refuses
        a value. The error names the field inside `config.task`.
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
    make = _maker(name)
    _check_fields(name, arguments, task_fields(name))
    if name in TEXT_TASKS:
        from staleness_grpo.policy.huggingface import tokenizer

        if checkpoint is None:
            hint = f"the task {name} needs a tokenizer: give policy.checkpoint=FOLDER"
            raise FieldError("name", hint)
        arguments["tokenizer"] = tokenizer.load(checkpoint)
    return make(**arguments)


def task_fields(name: str) -> dict[str, inspect.Parameter]:
    """Returns the fields that `config.task` may have beside `name`, for the task of this name."""
    fields = dict(inspect.signature(_maker(name)).parameters)
    fields.pop("tokenizer", None)  # it comes from the checkpoint
    return fields


def fields_hint(name: str) -> str:
    """Says how to get the fields of a task: flags can change fields, but not add them."""
    fields = ", ".join(task_fields(name))
    return f"give a config whose task section has the fields of {name} ({fields})"


def _maker(name: str) -> Callable[..., "Task"]:
    module, maker = TASKS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), maker)


def _check_fields(
    name: str, arguments: Mapping[str, Any], fields: Mapping[str, inspect.Parameter]
) -> None:
    """Raises FieldError unless the arguments are fields of the task and none is missing."""
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
