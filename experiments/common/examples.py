"""Names the shipped config file that is an example of each task.

An error about a task names one, because flags can change fields but not add them.
"""

from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import TEXT_TASKS

EXAMPLES = {
    "arithmetic": "arithmetic.py",
    "enumerable": "bias.py",
    "jsonl": "gsm8k_llama32_1b.py",
    "reasoning_gym": "reasoning_gym_qwen.py",
    "stories": "stories260k_cpu.py",
}


def example_config(task_name: str) -> str:
    """Returns the path, from the repository's root, of a config file with this task's fields."""
    return f"experiments/configs/{EXAMPLES[task_name]}"


def with_example(error: FieldError, config: ConfigDict) -> FieldError:
    """Adds an example config file to an error about the name of the task.

    Other errors, and errors about a task that is not known, are returned as they are.
    """
    if error.field != "task.name" or config.task.name not in EXAMPLES:
        return error
    name = config.task.name
    if config.get("policy", {}).get("checkpoint") is not None and name not in TEXT_TASKS:
        name = "jsonl"  # a checkpoint answers tasks of text
    hint = f"{error.hint}; an example of {name} is {example_config(name)}"
    return FieldError(error.field, hint, error.value)
