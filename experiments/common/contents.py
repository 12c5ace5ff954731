"""Compares what a config only names with what a workdir was made from: data, code and weights.

A config names files of problems, model folders, and classes of one's own, which can change. So
environment.json has a fingerprint of each, and results of other contents are never mixed.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json

# Entries of environment.json.
PROBLEMS = "problems"  # of a text task, or the code of a task of one's own
HELD_OUT = "held_out_problems"
POLICY = "policy"  # the code of a policy of one's own
REFERENCE = "reference_weights"  # of the model folder of the reference policy


def of_policy(config: ConfigDict) -> dict[str, str]:
    """Returns the fingerprint of a policy of one's own, by its entry; nothing for the decoder."""
    fields = config.get("policy", {})
    if fields.get("name") is None:
        return {}
    from staleness_grpo.policy import own

    return {POLICY: own.code_digest(fields["name"])}


def fingerprints(config: ConfigDict, task: Any) -> dict[str, str]:
    """Returns the fingerprint of each content that a training's config names, by its entry.

    Args:
      config: the config of a training or of a map.
      task: the task that `config.task` names.
    """
    from staleness_grpo.policy import huggingface
    from staleness_grpo.tasks.own import fingerprint
    from staleness_grpo.training.heldout import heldout_task

    found: dict[str, str | None] = {
        PROBLEMS: fingerprint(task, config.task.name),
        **of_policy(config),
    }
    if config.heldout.path is not None:
        found[HELD_OUT] = fingerprint(heldout_task(config, task), config.task.name)
    folder = config.reference.checkpoint or config.policy.checkpoint
    if config.reference.kl and folder is not None:
        found[REFERENCE] = huggingface.weights_digest(folder)
    return {entry: value for entry, value in found.items() if value is not None}


def check_same(folder: pathlib.Path, config: ConfigDict, given: Mapping[str, str]) -> None:
    """Refuses to add to results that were made with other contents.

    Args:
      folder: the workdir.
      config: the config of this call.
      given: `fingerprints` of this call.

    Raises:
      FieldError: a fingerprint in the folder is another one. The error names the field of the
        config that selects the content.
      FlagError: environment.json in the folder cannot be read.
    """
    path = folder / "environment.json"
    try:
        environment = read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        hint = f"the file environment.json cannot be read ({error}): give another folder"
        raise FlagError("workdir", folder, hint) from error
    problems = ("task.name", "by other code of the task: restore the original code")
    if "path" in config.task:
        fix = "restore the original problems and tokenizer"
        problems = ("task.path", f"with other problems, or with other tokens: {fix}")
    own = config.reference.checkpoint is None
    reference = "policy.checkpoint" if own else "reference.checkpoint"
    for entry, (field, reason) in {
        POLICY: ("policy.name", "by other code of the policy: restore the original code"),
        PROBLEMS: problems,
        HELD_OUT: ("heldout.path", "with other held-out problems: restore the original ones"),
        REFERENCE: (reference, "with other weights of the reference policy: restore the original"),
    }.items():
        if environment.get(entry) not in (None, given.get(entry)):
            hint = f"the results in {folder} were made {reason}, or give another workdir"
            section, name = field.split(".")
            raise FieldError(field, hint, config[section][name])


def check_same_code(folder: pathlib.Path, config: ConfigDict) -> None:
    """Refuses a finished folder if a task or a policy of one's own has other code now.

    Otherwise a user who has changed the class would see the old results, and take them for new.

    Raises:
      FieldError: as `check_same`.
      FlagError: as `check_same`.
    """
    from staleness_grpo.tasks import is_own, make_task

    if not {"task", "policy", "heldout", "reference"} <= set(config):
        return
    if is_own(config.task.name) or config.policy.name is not None:
        task = make_task(config.task, config.policy.checkpoint)
        check_same(folder, config, fingerprints(config, task))
