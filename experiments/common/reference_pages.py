"""Writes the pages of docs/ that are made from the code that they describe.

    python -m experiments.common.reference_pages

A test fails when a page is out of date.
"""

import ast
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.common.api_page import api_page
from staleness_grpo.config.defaults import default_config
from staleness_grpo.objective.corrections import registry
from staleness_grpo.objective.update_corrections import UPDATE_CORRECTIONS
from staleness_grpo.runtime.records import replacing
from staleness_grpo.tasks import TASKS, task_fields

DOCS = pathlib.Path(__file__).parents[2] / "docs"
GENERATED = (
    "<!-- Made by python -m experiments.common.reference_pages. Changes here are lost. -->\n\n"
)


def config_page() -> str:
    """Returns the page of the config's fields, with their types, defaults and meanings.

    Raises:
      ValueError: a field of the default config has no comment.
    """
    meanings = field_comments(default_config) | _parameter_meanings()
    rows: dict[str, list[list[str]]] = {}
    for field, meaning in meanings.items():
        section = field.rpartition(".")[0]
        rows.setdefault(section, []).append([f"`{field}`", *_type_and_default(field), meaning])
    parts = [GENERATED, CONFIG_INTRODUCTION]
    for section, section_rows in rows.items():
        parts.append(f"\n## {section}\n\n" if section else "\n")
        parts.append(_table(["field", "type", "default", "meaning"], section_rows))
        if section == "task":
            parts.append(_task_table())
    return "".join(parts)


def corrections_page() -> str:
    """Returns the page of the corrections, with formulas, sources and parameters."""
    rows = []
    for name, correction in registry.CORRECTIONS.items():
        notes = [_parameters(registry.parameters(name))]
        if registry.uses_surrogate_clip(name):
            notes.append("`surrogate.clip_low`, `surrogate.clip_high`")
        for field in ("length_normalization", "normalize_std"):
            if (required := getattr(correction, field)) is not None:
                notes.append(f"needs `surrogate.{field}={required}`")
        rows.append([*_described(name, correction), "; ".join(filter(None, notes))])
    updates = []
    for name, update in UPDATE_CORRECTIONS.items():
        place = "the optimizer's update" if update.after_optimizer else "the gradient"
        parameters = _parameters(registry.own_parameters(update.transformation))
        updates.append([*_described(name, update), place, parameters])
    columns = ["name", "formula", "source", "verified"]
    return (
        GENERATED
        + CORRECTIONS_INTRODUCTION
        + _table([*columns, "parameters and what it reads or needs"], rows)
        + UPDATES_INTRODUCTION
        + _table([*columns, "acts on", "parameters"], updates)
    )


CONFIG_INTRODUCTION = """\
# Config

Every field of the default config, which `staleness_grpo.config.defaults.default_config()` returns.
The files in `experiments/configs/` change some of its fields. Each field is also a flag, such as
`--config.lag.max_lag=8`. A field of type "str or unset" may be left out. [Words](words.md) explains
the terms and the letters.
"""

CORRECTIONS_INTRODUCTION = """\
# Corrections

A correction decides how the ratio of the learner's policy to the behavior policy enters the
surrogate. `correction.name` chooses one. Its parameters are fields of `correction`, and an unset
parameter has the value given here. Bias, variance and deviations from a source stand in the
docstring of each function in `staleness_grpo/objective/corrections/`.

For one token, `rho = pi_theta / pi_phi`, `r = pi_theta / pi_prox` and `w = pi_prox / pi_phi`. Here
`pi_theta` is the learner's policy and `pi_phi` the behavior policy. The proximal policy `pi_prox`
is the learner's at the start of the update. `A` is the advantage and `sg` stops the gradient.
`1[...]` is 1 where the condition holds and 0 elsewhere. `clip(x)` is
`clip(x, 1 - clip_low, 1 + clip_high)`. `prod_t` and `mean_t` run over the tokens of a response.
Each formula is the objective of one token, to be maximized.

"""

UPDATES_INTRODUCTION = """
## Corrections of the update

These act on the update instead of the loss. `correction.update_rule` chooses one, beside any
`correction.name`.

"""


def field_comments(function: Callable[[], ConfigDict]) -> dict[str, str]:
    """Returns the comment of each field in the source of a function that returns a config.

    A comment stands behind the field, or in the lines right above it. Fields that come from `**`
    are left out.

    Args:
      function: returns one call of `ConfigDict(dict(field=value, section=dict(...)))`.

    Raises:
      ValueError: a field has no comment.
    """
    source = inspect.getsource(function)
    behind, above = _comments(source)
    returned = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    assert isinstance(returned.value, ast.Call)  # of ConfigDict
    meanings = {}
    for field, value in _fields(returned.value.args[0], ""):
        first, last = value.lineno, value.end_lineno or value.lineno
        comment = behind.get(last) or behind.get(first) or above.get(first - 1)
        if comment is None:
            raise ValueError(f"{field} has no comment: write what it means behind it, or above it")
        meanings[field] = re.sub(r"(?<!\.)\.$", "", comment)
    return meanings


def _fields(call: ast.expr, prefix: str) -> Iterator[tuple[str, ast.expr]]:
    """Yields the name and the value of each field of a `dict(...)` and of the dicts within."""
    assert isinstance(call, ast.Call)
    for keyword in call.keywords:
        if keyword.arg is None:
            continue
        value = keyword.value
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict":
            yield from _fields(value, f"{prefix}{keyword.arg}.")
        else:
            yield prefix + keyword.arg, value


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Returns the comments by line: those behind code, and those that fill whole lines.

    Whole lines that follow each other are one comment, kept under the last of them.
    """
    behind: dict[int, str] = {}
    whole: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        number, text = token.start[0], token.string.lstrip("# ")
        if token.line.lstrip().startswith("#"):
            whole[number] = f"{whole.pop(number - 1, '')} {text}".strip()
        else:
            behind[number] = text
    return behind, whole


def _parameter_meanings() -> dict[str, str]:
    """Returns, for the field of each parameter of a correction, which corrections read it."""
    readers: dict[str, list[str]] = {}
    for name in registry.CORRECTIONS:
        for parameter in registry.parameters(name):
            readers.setdefault(parameter, []).append(name)
    for name, update in UPDATE_CORRECTIONS.items():
        for parameter in registry.own_parameters(update.transformation):
            readers.setdefault(parameter, []).append(name)
    return {
        f"correction.{parameter}": f"of {', '.join(f'`{name}`' for name in readers[parameter])}; "
        "unset: the value in [corrections](corrections.md)"
        for parameter in sorted(readers)
    }


def _type_and_default(field: str) -> list[str]:
    """Returns the cells with the type and the default of a field."""
    section, _, name = field.rpartition(".")
    config = default_config()
    owner = config[section] if section else config
    kind = owner.get_type(name).__name__
    return [f"{kind} or unset", "unset"] if owner[name] is None else [kind, f"`{owner[name]}`"]


def _task_table() -> str:
    rows = []
    for name in TASKS:
        fields = [
            f"`{field}`" if parameter.default is parameter.empty else f"`{parameter}`"
            for field, parameter in (
                (field, parameter.replace(annotation=parameter.empty))
                for field, parameter in task_fields(name).items()
            )
        ]
        rows.append([f"`{name}`", ", ".join(fields)])
    return "\nEach task has fields of its own:\n\n" + _table(
        ["`task.name`", "fields, with their defaults"], rows
    )


def _described(name: str, correction: Any) -> list[str]:
    """Returns the cells that describe a correction of either kind.

    Raises:
      ValueError: one of them is empty.
    """
    for field in ("formula", "source", "verified"):
        if not getattr(correction, field):
            raise ValueError(f"the correction {name} has no {field}: give it one")
    return [f"`{name}`", f"`{correction.formula}`", correction.source, correction.verified]


def _parameters(parameters: dict[str, float]) -> str:
    return ", ".join(f"`{name}={default}`" for name, default in parameters.items())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table. A bar inside a cell is escaped, also within code."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |\n" for cells in lines
    )


BAR = "\\|"


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_page,
    "corrections.md": corrections_page,
    "api.md": lambda: GENERATED + api_page(),
}


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        text = page()
        with replacing(DOCS / name) as file:
            file.write_text(text)


if __name__ == "__main__":
    main()
