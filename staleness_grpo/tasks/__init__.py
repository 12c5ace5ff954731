"""Tasks: prompts by index, and what their rewards are judged from."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the worker processes that judge rewards import this package, and not JAX with it
    from staleness_grpo.tasks.base import Task

# Imported on use: a task may need packages that the others do without.
TASKS = {
    "arithmetic": "arithmetic.ArithmeticTask",
    "enumerable": "enumerable.EnumerableTask",
    "jsonl": "text.jsonl_task",
    "reasoning_gym": "text.reasoning_gym_task",
    "stories": "text.stories_task",
}
TEXT_TASKS = ("jsonl", "reasoning_gym", "stories")  # their tokens are those of a checkpoint's tokenizer


class TaskError(ValueError):
    """A field of a task's config that cannot be used."""

    def __init__(self, field: str, mend: str):
        super().__init__(f"task.{field}: {mend}")
        self.field, self.mend = field, mend


def make_task(config: Mapping, checkpoint: str | None = None) -> "Task":
    """The task `config["name"]`; the other entries are its arguments.

    Args:
      config: `config.task`.
      checkpoint: the folder whose tokenizer a text task uses.

    Raises:
      ValueError: for an unknown name, a value that the task refuses (TaskError where it is known which), or a folder
        without a tokenizer (CheckpointError).
      TypeError: for an entry that the task does not have.
    """
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    name = arguments.pop("name")
    if name not in TASKS:
        raise ValueError(f"task.name must be one of {tuple(TASKS)}, got {name!r}")
    if name in TEXT_TASKS:
        from staleness_grpo.policy import tokenizer

        if checkpoint is None:
            raise TaskError("name", f"the task {name} needs a tokenizer: give policy.checkpoint=FOLDER")
        arguments["tokenizer"] = tokenizer.load(checkpoint)
    module, maker = TASKS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), maker)(**arguments)
