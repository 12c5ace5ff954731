"""Makes the text of docs/api.md from the docstrings of the package's public names."""

import dataclasses
import inspect
import re
from typing import Any

import staleness_grpo

INTRODUCTION = """\
# API

These names may be relied on: `from staleness_grpo import NAME`. Everything else may change without
notice. [Words](words.md) explains the terms and the shape letters.

Three more modules may be relied on:

- `staleness_grpo.policy.huggingface` has `load(folder, dtype=...) -> (policy, params)` and `save`:
  see [models](models.md).
- `staleness_grpo.tasks.base` has the protocols of a task, `ArrayTask` and `TextTask`.
- `staleness_grpo.policy.base` has the protocol of a policy, `AnyPolicy`: see
  [a policy of your own](own_policy.md).
"""


def api_page() -> str:
    """Returns the page that lists each public name with its signature and docstring."""
    return INTRODUCTION + "".join(_entry(name) for name in staleness_grpo.__all__)


def _entry(name: str) -> str:
    """Returns the section about one public name."""
    value = getattr(staleness_grpo, name)
    kind = "class" if inspect.isclass(value) else "function"
    signature = _signature(name, value)
    module = value.__module__
    parts = [f"\n## `{name}`\n\n{kind} of `{module}`\n\n```python\n{signature}\n```\n"]
    parts.append(f"\n```text\n{inspect.getdoc(value)}\n```\n")
    if inspect.isclass(value):
        parts += [_method(value, method) for method in _public_methods(value)]
        parts.append("\n")
    return "".join(parts)


def _signature(name: str, value: Any) -> str:
    """Returns the signature as one line, or with one argument per line if it is longer than 90."""
    try:
        arguments = [str(parameter) for parameter in inspect.signature(value).parameters.values()]
    except ValueError:  # Python knows no signature of this value
        return name
    arguments = [
        re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_])", r"\1", argument) for argument in arguments
    ]
    arguments = [_without_quotes_in_annotation(argument) for argument in arguments]
    if dataclasses.is_dataclass(value) and isinstance(value, type):
        arguments = [re.sub(r" = <factory>", " = ...", argument) for argument in arguments]
    # Addresses in memory differ from process to process, so they must not reach the page.
    arguments = [re.sub(r"<function (\w+) at 0x\w+>", r"\1", argument) for argument in arguments]
    arguments = [
        re.sub(r"<object object at 0x\w+>", "NOT_GIVEN", argument) for argument in arguments
    ]
    one_line = f"{name}({', '.join(arguments)})"
    if len(one_line) <= 90:
        return one_line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def _without_quotes_in_annotation(argument: str) -> str:
    """Returns an argument with the quotes of its annotation removed, and its default unchanged."""
    annotated, equals, default = argument.partition(" = ")
    return annotated.replace("'", "") + equals + default


def _public_methods(value: type) -> list[str]:
    """Returns the names of public methods with a docstring, without inherited methods."""
    return [
        name
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)))
        and inspect.getdoc(getattr(value, name))
    ]


def _method(value: type, name: str) -> str:
    """Returns a list item with the method's arguments and the first line of its docstring."""
    method = getattr(value, name)
    first_line = (inspect.getdoc(method) or "").splitlines()[0]
    return f"\n- `.{name}{_arguments(method)}`: {first_line}"


def _arguments(method: Any) -> str:
    """Returns the names of the method's arguments in parentheses, without self."""
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    return f"({', '.join(names)})"
