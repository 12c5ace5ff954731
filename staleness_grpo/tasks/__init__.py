"""Tasks: prompts by index, rewards on the host."""

import importlib
from collections.abc import Mapping

from staleness_grpo.tasks.base import Task

# Imported on use: a task may need packages that the others do without.
TASKS = {"arithmetic": "arithmetic.ArithmeticTask", "enumerable": "enumerable.EnumerableTask"}


def make_task(config: Mapping) -> Task:
    """The task `config["name"]`; the other entries are its constructor's arguments.

    Raises:
      ValueError: for an unknown name, or a value that the task refuses.
      TypeError: for an entry that the task does not have.
    """
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    name = arguments.pop("name")
    if name not in TASKS:
        raise ValueError(f"task.name must be one of {tuple(TASKS)}, got {name!r}")
    module, class_name = TASKS[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), class_name)(**arguments)
