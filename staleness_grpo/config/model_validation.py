"""Refuses what a model, a checkpoint or the devices cannot run: rules that span sections."""

from typing import Any

from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, require


def check_policy(config: ConfigDict, platform: str | None) -> None:
    """Refuses a policy that devices or mesh cannot run, and flags that a checkpoint fixes.

    Raises:
      FieldError: naming the first field found wrong.
    """
    import jax

    if config.policy.attention == "splash":
        platform = platform or jax.default_backend()
        hint = f"this kernel is for TPUs, and the devices are of platform {platform}: choose xla"
        require(platform == "tpu", "policy.attention", hint)
    tensor, checkpoint = config.mesh.tensor, config.policy.checkpoint
    if checkpoint is None:
        for name in ("num_heads", "num_kv_heads"):
            divides = config.policy[name] % tensor == 0
            require(divides, f"policy.{name}", f"give a multiple of mesh.tensor={tensor}")
        return
    architecture = _checkpoint_architecture(config)
    for name, standard in default_config().policy.items():
        value = config.policy[name]
        if hasattr(architecture, name) and name not in _run_fields() and value != standard:
            given = getattr(architecture, name)
            hint = f"policy.checkpoint has {given}: leave the flag out"
            require(value == given, f"policy.{name}", hint)
    divides = architecture.vocab_size % config.policy.vocab_chunks == 0
    hint = f"give a divisor of the checkpoint's vocabulary {architecture.vocab_size}"
    require(divides, "policy.vocab_chunks", hint)
    heads = architecture.num_kv_heads
    hint = f"give a divisor of the checkpoint's {heads} key/value heads"
    require(heads % tensor == 0, "mesh.tensor", hint)


def _run_fields() -> tuple[str, ...]:
    from staleness_grpo.policy.configured import RUN_FIELDS

    return RUN_FIELDS


def _checkpoint_architecture(config: ConfigDict) -> Any:
    """Reads the shape of the checkpoint and checks its tensors against it. Raises FieldError."""
    from staleness_grpo.policy import huggingface
    from staleness_grpo.policy.configured import make_policy

    checkpoint = config.policy.checkpoint
    try:
        architecture = make_policy({**config.policy, "vocab_chunks": 1}, 0).config
        huggingface.check_tensors(checkpoint, architecture)
    except ModuleNotFoundError as error:
        hint = f"pip install {error.name}, of the extra hf"
        raise FieldError("policy.checkpoint", hint, checkpoint) from error
    except ValueError as error:
        raise FieldError("policy.checkpoint", str(error), checkpoint) from error
    return architecture


def check_task(config: ConfigDict) -> None:
    """Refuses a task that cannot be made, or whose tokens are not the policy's.

    Raises:
      FieldError: naming the first field found wrong.
    """
    from staleness_grpo.policy.huggingface.config import ModelFolderError
    from staleness_grpo.tasks import make_task

    if not isinstance(config.task, ConfigDict) or "name" not in config.task:
        raise FieldError("task", "give fields, among them name", config.task)
    try:
        task = make_task(config.task, config.policy.checkpoint)
    except FieldError as error:
        raise error.below("task") from error
    except ModelFolderError as error:
        raise FieldError("policy.checkpoint", str(error)) from error
    except ModuleNotFoundError as error:
        hint = f"pip install {error.name}, of the extra hf"
        raise FieldError("task.name", hint) from error
    except (TypeError, ValueError) as error:  # the task's own words on its own fields
        raise FieldError("task", str(error), dict(config.task)) from error
    if config.policy.checkpoint is not None:
        _check_task_with_checkpoint(config, task)
        return
    vocab_size, chunks = task.vocab_size, config.policy.vocab_chunks
    hint = f"give a divisor of the vocabulary {vocab_size}"
    require(vocab_size % chunks == 0, "policy.vocab_chunks", hint)
    require(
        config.warm_start.steps == 0 or hasattr(task, "corpus_batch"),
        "warm_start.steps",
        f"the task {config.task.name} has no corpus to start from: give 0",
    )


def _check_task_with_checkpoint(config: ConfigDict, task: Any) -> None:
    """Refuses a task whose tokens or lengths are not those of the checkpoint."""
    from staleness_grpo.policy.configured import make_policy
    from staleness_grpo.policy.huggingface.config import max_positions
    from staleness_grpo.tasks import TEXT_TASKS

    known = make_policy(config.policy, task.vocab_size).config.vocab_size
    hint = f"the task has {task.vocab_size} tokens, the checkpoint {known}: give one with as many"
    require(task.vocab_size <= known, "policy.checkpoint", hint)
    hint = (
        f"it has {task.vocab_size} tokens of its own, and not the checkpoint's {known}: "
        f"give a config whose task is of text ({', '.join(TEXT_TASKS)})"
    )
    text = config.task.name in TEXT_TASKS
    require(text or task.vocab_size == known, "task.name", hint)
    ends = task.end_token if isinstance(task.end_token, tuple) else (task.end_token or 0,)
    hint = (
        f"the stop and pad tokens {ends}, {task.pad_token} are not all among its {known}: "
        "fix generation_config"
    )
    inside = all(0 <= token < known for token in (*ends, task.pad_token))
    require(inside, "policy.checkpoint", hint)
    prompt, response = task.prompt_length, task.max_response_length
    positions = max_positions(config.policy.checkpoint)
    if positions is not None and prompt + response > positions:
        hint = (
            f"with a prompt's {prompt} tokens it is beyond the checkpoint's {positions} positions: "
            "make both together at most that"
        )
        raise FieldError("task.max_response_length", hint, response)
