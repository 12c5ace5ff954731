"""Checks a task of one's own, and describes it, so that records say what was run."""

import dataclasses
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from staleness_grpo.errors import FieldError, require
from staleness_grpo.runtime import importing
from staleness_grpo.tasks import is_own
from staleness_grpo.tasks.base import TextTask
from staleness_grpo.tasks.components import WeightedSum
from staleness_grpo.types import Prompts

MEMBERS = (
    "vocab_size",
    "prompt_length",
    "max_response_length",
    "pad_token",
    "end_token",
    "num_prompts",
    "prompts",
    "decode",
)
TEXT_MEMBERS = ("verify", "samples")
ARRAY_MEMBERS = ("rewards",)
MAX_DEPTH = 4
SIZES = ("vocab_size", "prompt_length", "max_response_length", "num_prompts")


def check_interface(task: Any) -> None:
    """Checks that a task has all members of its interface in `tasks.base`, with usable values.

    The prompts of the first and of the last index are made and checked.

    Raises:
      FieldError: the field `task`, with what the class lacks or which value is wrong.
    """
    name = type(task).__name__
    is_text = any(hasattr(task, member) for member in TEXT_MEMBERS)
    needed = MEMBERS + (TEXT_MEMBERS if is_text else ARRAY_MEMBERS)
    lacking = [member for member in needed if not hasattr(task, member)]
    hint = f"this class lacks {', '.join(lacking)}: see staleness_grpo/tasks/base.py"
    require(not lacking, "task", hint, name)
    for member in SIZES:
        value = getattr(task, member)
        is_size = isinstance(value, int | np.integer) and int(value) >= 1
        require(is_size, "task", f"its {member} is {value!r}: give an int >= 1", name)
    end = task.end_token
    ends = () if end is None else end if isinstance(end, tuple) else (end,)
    # The pad and end tokens of text are the checkpoint's, which may have more tokens than its text.
    for token in () if is_text else (task.pad_token, *ends):
        is_known = isinstance(token, int | np.integer) and int(token) in range(task.vocab_size)
        hint = f"its pad or end token {token!r} is not in [0, vocab_size={task.vocab_size})"
        require(is_known, "task", f"{hint}: make vocab_size larger, or change the token", name)
    index_N = np.array([0, task.num_prompts - 1])
    try:
        prompts = task.prompts(index_N)
    except FieldError:
        raise
    except Exception as error:  # the class is a program, and can raise any error
        hint = f"its prompts fails with {importing.described(error)}: correct it"
        raise FieldError("task", hint, name) from error
    check_prompts(task, index_N, prompts)


def check_prompts(task: Any, index_N: np.ndarray, prompts: Any) -> None:
    """Checks shapes and tokens of prompts that a task made.

    Raises:
      FieldError: the field `task`, with the index of the first wrong prompt.
    """
    name, shape = type(task).__name__, (len(index_N), task.prompt_length)
    kind = type(prompts).__name__
    hint = f"its prompts() gave {kind}: give staleness_grpo.types.Prompts"
    require(isinstance(prompts, Prompts), "task", hint, name)
    tokens, mask = np.asarray(prompts.tokens_NxP), np.asarray(prompts.mask_NxP)
    for part, array, kinds, wanted in (
        ("tokens_NxP", tokens, "iu", "int32"),
        ("mask_NxP", mask, "b", "bool"),
    ):
        hint = f"its prompts() gave {part} of type {array.dtype}: give {wanted}"
        require(array.dtype.kind in kinds, "task", hint, name)
    for part, array in (("tokens_NxP", tokens), ("mask_NxP", mask)):
        hint = f"its prompts() gave {part} of shape {array.shape}: give {shape}"
        require(array.shape == shape, "task", hint, name)
    is_right_padded = mask[:, :-1] & ~mask[:, 1:]
    if is_right_padded.any():
        row, position = np.argwhere(is_right_padded)[0]
        reason = f"its prompt {index_N[row]} has padding at position {position + 1}, after a token"
        raise FieldError("task", f"{reason}: put all padding on the left", name)
    is_known = ~mask | ((tokens >= 0) & (tokens < task.vocab_size))
    if not is_known.all():
        row, position = np.argwhere(~is_known)[0]
        token, vocab_size = tokens[row, position], task.vocab_size
        reason = f"its prompt {index_N[row]} has the token {token}"
        raise FieldError("task", f"{reason}, but vocab_size is {vocab_size}: make it larger", name)


def describe(task: Any) -> dict[str, Any]:
    """Returns what identifies a task, as the section `task` of a config.

    Returns:
      `name`: MODULE:CLASS.
      `digest`: a hash of the code of the class, of its verifier, and of the task's data. A task
        with another reward function or other problems has another digest.
    """
    kind = type(task)
    parts = [_source(ancestor) for ancestor in kind.__mro__ if ancestor is not object]
    if isinstance(task, TextTask):
        verifier = task.verify
        parts.append(_source(verifier if inspect.isroutine(verifier) else type(verifier)))
        if isinstance(verifier, WeightedSum):
            parts.append(_data([verifier.component_names, verifier.weights, verifier.verifiers]))
            for component in verifier.verifiers.values():
                is_routine = inspect.isroutine(component)
                parts.append(_source(component if is_routine else type(component)))
    parts.append(_data(getattr(task, "fingerprint", None) or _fields(task)))
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return {"name": f"{kind.__module__}:{kind.__qualname__}", "digest": digest}


def fingerprint(task: Any, name: str) -> str | None:
    """Returns what identifies the content of the task that `config.task` names.

    The config has the name and the fields. The fingerprint is that of the problems, or of the code
    of a class of one's own. It is None for a task that name and fields identify.
    """
    if is_own(name):
        return describe(task)["digest"]
    return getattr(task, "fingerprint", None)


def _fields(instance: Any) -> dict[str, Any]:
    """Returns the attributes of an instance, without results that it keeps for later use."""
    if dataclasses.is_dataclass(instance):
        return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return {
        name: value
        for name, value in getattr(instance, "__dict__", {}).items()
        if not isinstance(getattr(type(instance), name, None), functools.cached_property)
    }


def _source(defined: Any) -> str:
    """Returns the source code of a class or function, or else a text with its instructions."""
    try:
        return inspect.getsource(defined)
    except (OSError, TypeError):  # defined in an interactive session, or not in Python
        members = vars(defined) if isinstance(defined, type) else {"": defined}
        return json.dumps([[name, _data(value)] for name, value in sorted(members.items())])


def _data(value: Any, depth: int = 0) -> Any:
    """Returns data that JSON can store and that differs where the value does.

    Objects without data, such as an open file, and objects inside MAX_DEPTH others are known by the
    name of their type alone.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        array = np.asarray(value)
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return [str(array.dtype), array.shape, content]
    if isinstance(value, Mapping):
        return sorted((str(key), _data(item, depth)) for key, item in value.items())
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_data(item, depth)) for item in value)
    if isinstance(value, Sequence):
        return [_data(item, depth) for item in value]
    code = getattr(value, "__code__", value)
    if isinstance(code, types.CodeType):
        return [code.co_code.hex(), *(_data(constant, depth) for constant in code.co_consts)]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return [name, _data(_fields(value), depth + 1)] if depth < MAX_DEPTH else name
