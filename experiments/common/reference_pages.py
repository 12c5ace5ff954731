"""Writes the pages of docs/ that are generated from the code: config, corrections and API.

    python -m experiments.common.reference_pages

tests/test_docs.py fails if a page is out of date.
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
from staleness_grpo.objective.corrections import registry, signatures
from staleness_grpo.objective.update_rules import UPDATE_RULES
from staleness_grpo.runtime.records import replacing
from staleness_grpo.tasks import TASKS, task_fields

DOCS = pathlib.Path(__file__).parents[2] / "docs"
GENERATED = (
    "<!-- Made by python -m experiments.common.reference_pages. Changes here are lost. -->\n\n"
)


def config_page() -> str:
    """Returns the page that lists each config field with its type, default and meaning.

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
    """Returns the page that lists each correction with its formula, source and parameters.

    Raises:
      ValueError: a correction has no formula, source or verification.
    """
    rows = []
    for name, correction in registry.CORRECTIONS.items():
        notes = [_parameters(registry.parameters(name))]
        if registry.uses_surrogate_clip(name):
            notes.append("`surrogate.clip_low`, `surrogate.clip_high`")
        for field in ("length_normalization", "normalize_std"):
            if (required := getattr(correction, field)) is not None:
                notes.append(f"needs `surrogate.{field}={required}`")
        if correction.optimal_baseline:
            notes.append("one more pass over the policy, for the norm of each response's score")
        if not correction.has_exact_coefficients:
            notes.append("no exact bias")
        rows.append([*_described(name, correction), "; ".join(filter(None, notes))])
    updates = []
    for name, update in UPDATE_RULES.items():
        place = "the optimizer's update" if update.after_optimizer else "the gradient"
        parameters = _parameters(signatures.own_parameters(update.transformation))
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
In a group, `R_i` is the reward of response i, `y` a response, and `|...|` the norm over all
parameters. Each formula is the objective of one token, to be maximized.

"""

UPDATES_INTRODUCTION = """
## Corrections of the update

These act on the update instead of the loss. `correction.update_rule` chooses one, beside any
`correction.name`.

"""


def field_comments(function: Callable[[], ConfigDict]) -> dict[str, str]:
    """Returns the comment of each field, read from the source of a function that makes a config.

    The comment is on the first or last line of the field, or on the lines directly above it. Fields
    that are added with `**` are left out.

    Args:
      function: its return statement is one call `ConfigDict(dict(field=value, section=dict(...)))`.

    Returns:
      The comments by field name, with dots between sections.

    Raises:
      ValueError: a field has no comment.
    """
    source = inspect.getsource(function)
    inline_comments, block_comments = _comments(source)
    returned = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return))
    assert isinstance(returned.value, ast.Call)  # the call of ConfigDict
    meanings = {}
    for field, value in _fields(returned.value.args[0], ""):
        first_line, last_line = value.lineno, value.end_lineno or value.lineno
        comment = (
            inline_comments.get(last_line)
            or inline_comments.get(first_line)
            or block_comments.get(first_line - 1)
        )
        if comment is None:
            hint = "describe the field in a comment on the same line, or on the line above"
            raise ValueError(f"{field} has no comment: {hint}")
        meanings[field] = re.sub(r"(?<!\.)\.$", "", comment)
    return meanings


def _fields(call: ast.expr, prefix: str) -> Iterator[tuple[str, ast.expr]]:
    """Yields the name and the value of each field of a `dict(...)` and of its nested dicts."""
    assert isinstance(call, ast.Call)
    for keyword in call.keywords:
        if keyword.arg is None:  # an argument with **
            continue
        value = keyword.value
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict":
            yield from _fields(value, f"{prefix}{keyword.arg}.")
        else:
            yield prefix + keyword.arg, value


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Returns two dicts from line number to comment: inline comments and block comments.

    An inline comment follows code on its line. A block comment fills one or more lines in a row,
    and its key is the number of its last line.
    """
    inline_comments: dict[int, str] = {}
    block_comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line_number, text = token.start[0], token.string.lstrip("# ")
        if token.line.lstrip().startswith("#"):
            earlier_lines = block_comments.pop(line_number - 1, "")
            block_comments[line_number] = f"{earlier_lines} {text}".strip()
        else:
            inline_comments[line_number] = text
    return inline_comments, block_comments


def _parameter_meanings() -> dict[str, str]:
    """Returns the meaning of each correction parameter: a text that names its corrections.

    The keys are the names of the parameters' config fields.
    """
    readers: dict[str, list[str]] = {}
    for name in registry.CORRECTIONS:
        for parameter in registry.parameters(name):
            readers.setdefault(parameter, []).append(name)
    for name, update in UPDATE_RULES.items():
        for parameter in signatures.own_parameters(update.transformation):
            readers.setdefault(parameter, []).append(name)
    return {
        f"correction.{parameter}": f"of {', '.join(f'`{name}`' for name in readers[parameter])}; "
        "unset: the value in [corrections](corrections.md)"
        for parameter in sorted(readers)
    }


def _type_and_default(field: str) -> list[str]:
    """Returns two table cells: the type and the default value of a field."""
    section, _, name = field.rpartition(".")
    config = default_config()
    owner = config[section] if section else config
    type_name = owner.get_type(name).__name__
    if owner[name] is None:
        return [f"{type_name} or unset", "unset"]
    return [type_name, f"`{owner[name]}`"]


def _task_table() -> str:
    """Returns a table of the tasks and their own config fields."""
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
    """Returns four table cells: name, formula, source and verification of a correction.

    Raises:
      ValueError: the formula, the source or the verification is empty.
    """
    for field in ("formula", "source", "verified"):
        if not getattr(correction, field):
            raise ValueError(f"the correction {name} has no {field}: give it a {field}")
    return [f"`{name}`", f"`{correction.formula}`", correction.source, correction.verified]


def _parameters(parameters: dict[str, float]) -> str:
    """Returns the parameters with their default values, as one table cell."""
    return ", ".join(f"`{name}={default}`" for name, default in parameters.items())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table. A "|" inside a cell is escaped, also inside code."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', ESCAPED_BAR) for cell in cells)} |\n" for cells in lines
    )


ESCAPED_BAR = "\\|"


PAGES: dict[str, Callable[[], str]] = {
    "config.md": config_page,
    "corrections.md": corrections_page,
    "api.md": lambda: GENERATED + api_page(),
}


def main() -> None:
    """Writes each page of PAGES into docs/."""
    for name, page in PAGES.items():
        text = page()
        with replacing(DOCS / name) as file:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
