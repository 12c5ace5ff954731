"""The page about logs has the names that are read."""

import pathlib
import re

import pytest

from staleness_grpo.logs import FORMATS

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "logs.md").read_text()


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name not in ("staleness_grpo", "csv")]
)
def test_the_page_has_the_names_of_a_format(name):
    section = PAGE.partition(f"\n### `{name}`\n")[2].partition("\n##")[0]
    rows = re.findall(r"^\| `(\w+)`(.*?) \| (.*) \|$", section, re.MULTILINE)
    described = {signal: re.findall(r"`([^`]+)`", names) for signal, _, names in rows}
    assert described == {
        signal: [*column.names, *([column.plus] if column.plus else [])]
        for signal, column in FORMATS[name].signals.items()
    }
    for signal, unit, names in rows:
        column = FORMATS[name].signals[signal]
        assert (" + " in names) == bool(column.plus)
        assert unit == (
            ", the step minus"
            if column.behind
            else ", in versions"
            if column.in_versions
            else ", after the update"
            if column.after
            else f", {column.factor:g} times"
            if column.factor != 1
            else ""
        )


def test_the_table_of_files_says_where_steps_count_from():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (0|1|0 or 1) \| .* \|$", PAGE, re.MULTILINE)
    first = {
        name: "0 or 1" if f.first_step is None else str(f.first_step) for name, f in FORMATS.items()
    }
    assert dict(rows) == first
