"""Builds a run from a config that was not checked yet, with a task of one's own if there is one."""

import jax
from ml_collections import ConfigDict

from staleness_grpo.config.validation import validate
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.base import Task
from staleness_grpo.tasks.own import describe
from staleness_grpo.training.run import Run, assemble_run


def build_run(config: ConfigDict, task: Task | None = None) -> Run:
    """Validates a config and builds its run, with mesh, task, policy, optimizer and schedule.

    Args:
      config: a config with the fields of `config.defaults.default_config`. It is not changed.
      task: your own task, which replaces the task that `config.task` names. In the config of the
        run, the section `task` then has name and digest of your task (`tasks.own.describe`). If
        your task has no corpus for a warm start, set `config.warm_start.steps` to 0.

    Raises:
      FieldError: the config or the task cannot be used.
    """
    config = config.copy_and_resolve_references()
    validate(config, jax.device_count(), task=task)
    if task is None:
        task = make_task(config.task, config.policy.checkpoint)
    else:
        config.task = ConfigDict(describe(task))
    return assemble_run(config, task)
