"""Checks the policy and the task of a config: against the checkpoint, devices and each other."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, require, require_local
from staleness_grpo.policy.architecture import KERNEL_PLATFORMS
from staleness_grpo.runtime import importing

NUM_PROMPTS, GROUP_SIZE = 2, 8  # of the responses that one's own task judges in the check


def check_policy(config: ConfigDict, platform: str | None) -> None:
    """Checks that devices and mesh can run the policy, and that the checkpoint agrees with it.

    Raises:
      FieldError: naming the first wrong field.
    """
    import jax

    if config.policy.name is not None:
        _check_own_policy(config)
        return
    for name in config.policy.arguments:
        hint = "only a policy of one's own reads it: set policy.name, or leave it out"
        raise FieldError(f"policy.arguments.{name}", hint)
    if needed := KERNEL_PLATFORMS.get(config.policy.attention):
        platform = platform or jax.default_backend()
        reason = f"this kernel is for a {needed.upper()}, but the devices have platform {platform}"
        require(platform == needed, "policy.attention", f"{reason}: choose xla")
    tensor, checkpoint = config.mesh.tensor, config.policy.checkpoint
    if checkpoint is None:
        for name in ("num_heads", "num_kv_heads"):
            divides = config.policy[name] % tensor == 0
            require(divides, f"policy.{name}", f"give a multiple of mesh.tensor={tensor}")
        return
    architecture = _checkpoint_architecture(config)
    for name, default_value in default_config().policy.items():
        value = config.policy[name]
        if hasattr(architecture, name) and name not in _run_fields() and value != default_value:
            checkpoint_value = getattr(architecture, name)
            hint = f"policy.checkpoint has {checkpoint_value}: leave the flag out"
            require(value == checkpoint_value, f"policy.{name}", hint)
    divides = architecture.vocab_size % config.policy.vocab_chunks == 0
    hint = f"give a divisor of the checkpoint's vocabulary size {architecture.vocab_size}"
    require(divides, "policy.vocab_chunks", hint)
    heads = architecture.num_kv_heads
    hint = f"give a divisor of the checkpoint's {heads} key/value heads"
    require(heads % tensor == 0, "mesh.tensor", hint)


def _check_own_policy(config: ConfigDict) -> None:
    """Refuses fields that have no effect on a policy of one's own.

    `check_task` makes the policy and checks it, because the task decides its vocabulary.
    """
    for name, default_value in default_config().policy.items():
        if name not in ("name", "arguments"):
            hint = f"only the decoder reads it, but policy.name is {config.policy.name}: leave it"
            require(config.policy[name] == default_value, f"policy.{name}", f"{hint} out")
    hint = "a policy of one's own has no model folder: leave the flag out"
    require(config.reference.checkpoint is None, "reference.checkpoint", hint)


def _run_fields() -> tuple[str, ...]:
    from staleness_grpo.policy.configured import RUN_FIELDS

    return RUN_FIELDS


def _checkpoint_architecture(config: ConfigDict) -> Any:
    """Returns the checkpoint's architecture, after a check that its tensors have those shapes.

    Raises:
      FieldError: the checkpoint cannot be used.
    """
    from staleness_grpo.policy import huggingface
    from staleness_grpo.policy.configured import make_decoder

    checkpoint = config.policy.checkpoint
    require_local(checkpoint, "policy.checkpoint")
    try:
        architecture = make_decoder({**config.policy, "vocab_chunks": 1}, 0).config
        huggingface.check_tensors(checkpoint, architecture)
    except ModuleNotFoundError as error:
        hint = f"a checkpoint needs {error.name}: pip install {error.name}, or the extra hf"
        raise FieldError("policy.checkpoint", hint, checkpoint) from error
    except ValueError as error:
        raise FieldError("policy.checkpoint", str(error), checkpoint) from error
    return architecture


def check_task(config: ConfigDict, task: Any = None) -> None:
    """Checks that the task can be made, and that the policy can read and write its tokens.

    Args:
      config: the config.
      task: a task that replaces the one that `config.task` names.

    Raises:
      FieldError: naming the first wrong field.
    """
    from staleness_grpo.tasks import is_own
    from staleness_grpo.tasks.own import check_interface

    is_own_task = task is not None
    if task is None:
        task = _make_task(config)
        is_own_task = is_own(config.task.name)
    check_interface(task)
    if is_own_task:
        check_judging(task)
    _check_heldout_problems(config, task)
    _check_reference(config, task)
    if config.policy.checkpoint is not None:
        _check_task_with_checkpoint(config, task)
        return
    if config.policy.name is not None:
        _check_policy_with_task(config, task)
    vocab_size, chunks = task.vocab_size, config.policy.vocab_chunks
    hint = f"give a divisor of the vocabulary size {vocab_size}"
    require(vocab_size % chunks == 0, "policy.vocab_chunks", hint)
    name = type(task).__name__
    hint = f"the task {name} has no corpus (`corpus_batch`) for a warm start: give 0"
    has_corpus = hasattr(task, "corpus_batch")
    require(config.warm_start.steps == 0 or has_corpus, "warm_start.steps", hint)


def check_judging(task: Any) -> None:
    """Lets a task of one's own decode and judge some responses, the latter if it judges arrays.

    What cannot be used then ends a run before it starts. The responses are drawn evenly, and end as
    those of the sampler do.

    Raises:
      FieldError: the field `task`: its `decode`, `rewards` or `judge` fails, gives another shape,
        or `judge` gives other rewards than `rewards`.
    """
    import jax

    from staleness_grpo.tasks.base import TextTask
    from staleness_grpo.training.rewards import finite_rewards

    name, rng = type(task).__name__, np.random.default_rng(0)

    def called(method: str, function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:  # the class is a program, and can raise any error
            hint = f"its {method} fails with {importing.described(error)}: correct it"
            raise FieldError("task", hint, name) from error

    index_N = np.array([0, task.num_prompts - 1])
    shape = (NUM_PROMPTS, GROUP_SIZE, task.max_response_length)
    tokens_NxGxR = rng.integers(0, task.vocab_size, shape).astype(np.int32)
    ends = task.end_token if isinstance(task.end_token, tuple) else (task.end_token,)
    is_end = np.isin(tokens_NxGxR, [token for token in ends if token is not None])
    mask_NxGxR: np.ndarray = np.cumsum(is_end, axis=-1) - is_end == 0
    text = called("decode", task.decode, tokens_NxGxR[0, 0][mask_NxGxR[0, 0]])
    require(isinstance(text, str), "task", f"its decode gave {text!r}: give a text", name)
    if isinstance(task, TextTask):
        return
    tokens_NxGxR[~mask_NxGxR] = task.pad_token
    rewards_NxG = called("rewards", task.rewards, index_N, tokens_NxGxR, mask_NxGxR)
    try:
        rewards_NxG, _ = finite_rewards(rewards_NxG, shape[:2], report=lambda failure: None)
    except FieldError as error:
        raise FieldError("task", error.hint, name) from error
    except (TypeError, ValueError) as error:
        raise FieldError("task", f"its rewards gave no array of numbers: {error}", name) from error
    if not (hasattr(task, "judge") and hasattr(task, "answer_key")):
        return
    key = called("answer_key", task.answer_key, index_N)
    judged_NxG = called("judge", jax.jit(task.judge), key, tokens_NxGxR, mask_NxGxR)
    found = getattr(judged_NxG, "shape", None)
    require(found == shape[:2], "task", f"its judge gave the shape {found}: give {shape[:2]}", name)
    judged_NxG = np.asarray(judged_NxG, np.float32)
    judged_NxG = np.where(np.isfinite(judged_NxG), judged_NxG, 0)  # as a run takes such rewards
    differ = ~np.isclose(judged_NxG, rewards_NxG, rtol=1e-5, atol=1e-6)
    if differ.any():
        n, g = np.argwhere(differ)[0]
        found = f"{judged_NxG[n, g]:g} and {rewards_NxG[n, g]:g}"
        hint = f"its judge and its rewards give {found} for one response: make them the same"
        raise FieldError("task", hint, name)


def _check_reference(config: ConfigDict, task: Any) -> None:
    """Checks that the model folder of the reference policy has the policy's shape.

    Raises:
      FieldError: it cannot be read, or has another shape. The error names the first such field.
    """
    from staleness_grpo.policy import huggingface
    from staleness_grpo.policy.configured import make_decoder

    folder = config.reference.checkpoint
    if folder is None:
        return
    fields = {**config.policy, "vocab_chunks": 1}  # which need not divide the other vocabulary
    policy = make_decoder(fields, task.vocab_size).config
    try:
        stored = make_decoder({**fields, "checkpoint": folder}, task.vocab_size).config
        for field in dataclasses.fields(policy):
            value, of_policy = getattr(stored, field.name), getattr(policy, field.name)
            hint = (
                f"its shape is not the policy's: {field.name} is {value} there, and {of_policy} in "
                "the policy: give a folder of the policy's shape"
            )
            require(value == of_policy, "reference.checkpoint", hint, folder)
        huggingface.check_tensors(folder, stored)
    except ModuleNotFoundError as error:
        hint = f"a checkpoint needs {error.name}: pip install {error.name}, or the extra hf"
        raise FieldError("reference.checkpoint", hint, folder) from error
    except ValueError as error:
        hint = error.hint if isinstance(error, FieldError) else str(error)
        raise FieldError("reference.checkpoint", hint, folder) from error


def _check_heldout_problems(config: ConfigDict, task: Any) -> None:
    """Checks that the held-out problems can be had, and that the policy can answer them."""
    from staleness_grpo.training.heldout import heldout_task, split

    fields = config.heldout
    if not fields.every:
        return
    try:
        if fields.path is None:
            split(task, fields.fraction)
            return
        other = heldout_task(config, task)
    except FieldError as error:
        raise error.below("heldout") from error
    if config.policy.checkpoint is not None:
        try:
            _check_task_with_checkpoint(config, other)
        except FieldError as error:
            hint = f"its problems cannot be answered: {error.field}: {error.hint}"
            raise FieldError("heldout.path", hint, fields.path) from error


def _make_task(config: ConfigDict) -> Any:
    """Makes the task that `config.task` names. Raises FieldError if that is impossible."""
    from staleness_grpo.policy.huggingface.config import ModelFolderError
    from staleness_grpo.tasks import make_task

    if not isinstance(config.task, ConfigDict) or "name" not in config.task:
        raise FieldError("task", "give a section with the field name", config.task)
    try:
        return make_task(config.task, config.policy.checkpoint)
    except FieldError as error:
        raise error.below("task") from error
    except ModelFolderError as error:
        raise FieldError("policy.checkpoint", str(error)) from error
    except ModuleNotFoundError as error:
        hint = f"the task needs {error.name}: pip install {error.name}, or the extra hf"
        raise FieldError("task.name", hint) from error
    except (TypeError, ValueError) as error:  # the task explains what is wrong with its fields
        raise FieldError("task", str(error), dict(config.task)) from error


def _check_policy_with_task(config: ConfigDict, task: Any) -> None:
    """Makes a policy of one's own for the tokens of the task, and checks it."""
    from staleness_grpo.policy import own

    try:
        name, arguments = config.policy.name, config.policy.arguments
        policy = own.make(name, arguments, task.vocab_size)
    except FieldError as error:
        raise error.below("policy") from error
    try:
        own.check_interface(policy)
    except FieldError as error:
        raise FieldError("policy.name", error.hint, name) from error


def _check_task_with_checkpoint(config: ConfigDict, task: Any) -> None:
    """Checks that the checkpoint has the task's tokens, and enough positions for its lengths."""
    from staleness_grpo.policy.configured import make_decoder
    from staleness_grpo.policy.huggingface.config import max_positions
    from staleness_grpo.tasks import TEXT_TASKS, task_fields
    from staleness_grpo.tasks.base import TextTask

    num_known = make_decoder(config.policy, task.vocab_size).config.vocab_size
    hint = (
        f"the task has {task.vocab_size} tokens, but the checkpoint has only {num_known}: "
        f"give a checkpoint with at least {task.vocab_size} tokens"
    )
    require(task.vocab_size <= num_known, "policy.checkpoint", hint)
    hint = (
        f"the task has its own {task.vocab_size} tokens, not the checkpoint's {num_known}: "
        f"give a config with a text task ({', '.join(TEXT_TASKS)})"
    )
    is_text_task = isinstance(task, TextTask)
    require(is_text_task or task.vocab_size == num_known, "task.name", hint)
    ends = task.end_token if isinstance(task.end_token, tuple) else (task.end_token or 0,)
    hint = (
        f"the stop tokens {ends} and the pad token {task.pad_token} are not all among its "
        f"{num_known} tokens: fix generation_config in the checkpoint"
    )
    are_known = all(0 <= token < num_known for token in (*ends, task.pad_token))
    require(are_known, "policy.checkpoint", hint)
    prompt, response = task.prompt_length, task.max_response_length
    positions = max_positions(config.policy.checkpoint)
    if positions is not None and prompt + response > positions:
        longest = getattr(task, "longest_prompt", "the longest problem")
        fixes = [f"give at most {positions - prompt}"] if positions > prompt else []
        if "max_prompt_length" in task_fields(config.task.name) and positions > response:
            fixes.append(
                f"leave out long prompts by task.max_prompt_length={positions - response} "
                "and task.too_long=drop"
            )
        else:
            fixes.append("remove problems with long prompts")
        hint = (
            f"with the prompt of {longest}, which has {prompt} tokens, it exceeds the checkpoint's "
            f"{positions} positions: {', or '.join(fixes)}"
        )
        raise FieldError("task.max_response_length", hint, response)
