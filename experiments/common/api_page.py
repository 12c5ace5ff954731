"""Makes docs/api.md from the public names and their docstrings."""

import dataclasses
import inspect
import re
from typing import Any

import staleness_grpo

INTRODUCTION = """\
# API

These names may be relied on: `from staleness_grpo import NAME`. Everything else may change without
notice. [Words](words.md) explains the terms and the shape letters.

Two more entry points have a package of their own:

- `staleness_grpo.policy.huggingface.load(folder, dtype=...) -> (policy, params)` and `save`, see
  [models](models.md);
- `staleness_grpo.tasks.base` has the protocols of a task, `ArrayTask` and `TextTask`.
"""


def api_page() -> str:
    """Returns the page of the public names, each with signature and docstring."""
    return INTRODUCTION + "".join(_entry(name) for name in staleness_grpo.__all__)


def _entry(name: str) -> str:
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
    """Returns the call, one argument a line where it is long."""
    try:
        arguments = [str(p) for p in inspect.signature(value).parameters.values()]
    except ValueError:
        return name
    arguments = [re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_])", r"\1", a) for a in arguments]
    arguments = [argument.replace("'", "") for argument in arguments]
    if dataclasses.is_dataclass(value) and isinstance(value, type):
        arguments = [re.sub(r" = <factory>", " = ...", a) for a in arguments]
    arguments = [re.sub(r"<function (\w+) at 0x\w+>", r"\1", a) for a in arguments]
    arguments = [re.sub(r"<object object at 0x\w+>", "NOT_GIVEN", a) for a in arguments]
    line = f"{name}({', '.join(arguments)})"
    if len(line) <= 90:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def _public_methods(value: type) -> list[str]:
    """Returns the documented methods that the class itself defines."""
    return [
        name
        for name, member in vars(value).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)))
        and inspect.getdoc(getattr(value, name))
    ]


def _method(value: type, name: str) -> str:
    method = getattr(value, name)
    first = (inspect.getdoc(method) or "").splitlines()[0]
    return f"\n- `.{name}{_arguments(method)}`: {first}"


def _arguments(method: Any) -> str:
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    return f"({', '.join(names)})"
