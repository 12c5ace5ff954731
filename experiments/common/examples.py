"""Names one shipped config file as the example for each task.

An error about the task names the example. A user who changes the task needs a config file, because
flags can change the fields of a task but cannot add fields.
"""

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import TEXT_TASKS

EXAMPLES = {  # task name -> file in experiments/configs/
    "arithmetic": "arithmetic.py",
    "enumerable": "bias.py",
    "jsonl": "gsm8k_llama32_1b.py",
    "reasoning_gym": "reasoning_gym_qwen.py",
    "stories": "stories260k_cpu.py",
}


def example_config(task_name: str) -> str:
    """Returns the path, from the repository's root, of a config file with this task's fields."""
    return f"experiments/configs/{EXAMPLES[task_name]}"


def by_name(error: FieldError, config: ConfigDict) -> FieldError:
    """Returns an error about a whole task as one about the flag that names the task.

    A section has no flag of its own. All other errors are returned unchanged.
    """
    if error.field.rpartition(".")[2] != "task":
        return error
    try:
        field = f"{error.field}.name"
        return FieldError(field, error.hint, field_value(config, field))
    except (KeyError, TypeError):  # the section names no task
        return error


def with_example(error: FieldError, config: ConfigDict) -> FieldError:
    """Returns an error about the field task.name with an example config file added to its hint.

    All other errors are returned unchanged. So are errors about an unknown task.
    """
    if error.field != "task.name" or config.task.name not in EXAMPLES:
        return error
    name = config.task.name
    if config.get("policy", {}).get("checkpoint") is not None and name not in TEXT_TASKS:
        name = "jsonl"  # a policy from a checkpoint can only do text tasks
    hint = f"{error.hint}; an example of {name} is {example_config(name)}"
    return FieldError(error.field, hint, error.value)
