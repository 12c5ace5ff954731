"""Tasks: prompts by index, and what their rewards are judged from."""

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the worker processes that judge rewards import this package, and not JAX with it
    from staleness_grpo.tasks.base import Task

# name -> (what makes it, a config that has its fields). Imported on use: it may need packages that others do without.
TASKS = {
    "arithmetic": ("arithmetic.ArithmeticTask", "arithmetic.py"),
    "enumerable": ("enumerable.EnumerableTask", "bias.py"),
    "jsonl": ("text.jsonl_task", "gsm8k_llama32_1b.py"),
    "reasoning_gym": ("text.reasoning_gym_task", "reasoning_gym_qwen.py"),
    "stories": ("text.stories_task", "stories260k_cpu.py"),
}
TEXT_TASKS = ("jsonl", "reasoning_gym", "stories")  # their tokens are those of a checkpoint's tokenizer


class TaskError(ValueError):
    """A field of a task's config that cannot be used."""

    def __init__(self, field: str, mend: str):
        super().__init__(f"task.{field}: {mend}")
        self.field, self.mend = field, mend


def make_task(config: Mapping, checkpoint: str | None = None) -> "Task":
    """The task `config["name"]`; the other entries are its arguments, unless they are None.

    Args:
      config: `config.task`.
      checkpoint: the folder whose tokenizer a text task uses.

    Raises:
      TaskError: for an unknown name, entries that the task lacks or does not have, or a value that it refuses.
      CheckpointError: for a folder without a tokenizer.
    """
    given = {name: value for name, value in config.items() if value is not None}
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    name = arguments.pop("name")
    if name not in TASKS:
        raise TaskError("name", f"choose one of {', '.join(TASKS)}")
    module, maker = TASKS[name][0].split(".")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), maker)
    fields = dict(inspect.signature(make).parameters)
    fields.pop("tokenizer", None)
    lacking = [field for field in fields if fields[field].default is inspect.Parameter.empty and field not in arguments]
    unknown = [field for field in arguments if field not in fields]
    if lacking or unknown:
        needs = f"needs the fields {', '.join(lacking)}" * bool(lacking)
        knows_not = f"has no field {' or '.join(unknown)}" * bool(unknown)
        reason = " and ".join(filter(None, (needs, knows_not)))
        raise TaskError("name", f"the task {name} {reason}: {another_config(name)}")
    if name in TEXT_TASKS:
        from staleness_grpo.policy import tokenizer

        if checkpoint is None:
            raise TaskError("name", f"the task {name} needs a tokenizer: give policy.checkpoint=FOLDER")
        arguments["tokenizer"] = tokenizer.load(checkpoint)
    return make(**arguments)


def another_config(name: str) -> str:
    """How to get the fields of this task, in words: flags can change fields and not add them."""
    return f"write a config file with the fields of {name}, as experiments/configs/{TASKS[name][1]}"
