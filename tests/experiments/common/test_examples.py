"""Each task has a shipped config that is an example of it, and errors about tasks name the file."""

import pytest

from experiments.common import cli
from experiments.common.examples import EXAMPLES, by_name, example_config, with_example
from experiments.common.flag_parsing import load_config
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import TASKS


@pytest.mark.parametrize("name", sorted(TASKS))
def test_each_task_has_an_example(name):
    assert load_config(cli.ROOT / example_config(name)).task.name == name


@pytest.mark.parametrize(
    ("task", "checkpoint", "example"),
    [
        ("jsonl", None, "jsonl"),
        ("arithmetic", None, "arithmetic"),
        ("arithmetic", "folder", "jsonl"),
        ("stories", "folder", "stories"),
    ],
)
def test_errors_about_the_tasks_name_get_an_example(task, checkpoint, example):
    config = default_config()
    config.task.name = task
    config.policy.checkpoint = checkpoint
    error = with_example(FieldError("task.name", "no", task), config)
    file = f"experiments/configs/{EXAMPLES[example]}"
    assert str(error) == f"task.name={task}: no; an example of {example} is {file}"


def test_an_error_about_a_whole_task_is_one_about_the_flag_that_names_it():
    config = default_config()
    config.task.name = "mine.py:Mine"
    found = by_name(FieldError("task", "no", {"name": "mine.py:Mine"}), config)
    assert str(found) == "task.name=mine.py:Mine: no"
    for field in ("task.num_terms", "stability.task"):  # the second section is not in this config
        error = FieldError(field, "no", 7)
        assert by_name(error, config) is error


def test_other_errors_stay_as_they_are():
    config = default_config()
    error = FieldError("task.num_terms", "no", 7)
    assert with_example(error, config) is error
    config.task.name = "poetry"
    error = FieldError("task.name", "no", "poetry")
    assert with_example(error, config) is error
