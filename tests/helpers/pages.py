"""Reads the numbers that pages state, and the records that they come from."""

import json
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
# [0.997](../experiments/results/bias/summary.json "sgd.constant.slope")
NUMBER_LINK = re.compile(r'\[([^\[\]]+)\]\(([^()\s"]*experiments/results/[^()\s"]+) "([^"]+)"\)')
FACTOR = re.compile(r"^(.*?) ([*/]) (\S+)$")


def number_links(page: str) -> list[tuple[str, str, str]]:
    """Returns (number as written, path of the record, key) of every number with a record."""
    return NUMBER_LINK.findall(page)


def look_up(path: pathlib.Path, key: str) -> float:
    """Returns the number at a key of a JSON file.

    A key is a path of names and places with dots. In a list of claims a name chooses the claim.
    Behind it may stand " / 1e9" or " * 100".

    Raises:
      KeyError: the record has no such key.
    """
    scaled = FACTOR.match(key)
    name, sign, factor = scaled.groups() if scaled else (key, "*", "1")
    value: Any = json.loads(path.read_text())
    rest = name
    while rest:
        rest, value = _step(value, rest, key)
    return float(value) * float(factor) if sign == "*" else float(value) / float(factor)


def _step(value: Any, rest: str, key: str) -> tuple[str, Any]:
    """Goes one name down; a name of the record may have dots itself."""
    if isinstance(value, dict):
        for name in sorted(value, key=len, reverse=True):
            if rest == name or rest.startswith(name + "."):
                return rest[len(name) + 1 :], value[name]
        raise KeyError(f"{key}: no {rest!r} among {sorted(value)}")
    head, _, tail = rest.partition(".")
    if head.isdigit():
        return tail, value[int(head)]
    for entry in sorted(value, key=lambda entry: len(entry["name"]), reverse=True):
        if rest.startswith(entry["name"] + "."):
            return rest[len(entry["name"]) + 1 :], entry
    raise KeyError(f"{key}: no claim for {rest!r}")


def agrees(written: str, value: float) -> bool:
    """Says whether a number as written is the value, rounded to the digits that are written."""
    plain = written.replace(",", "").replace(" %", "").replace("−", "-")
    mantissa, _, exponent = plain.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    if exponent:
        return f"{value:.{digits}e}" == f"{float(plain):.{digits}e}"
    return abs(round(value, digits) - float(plain)) < 0.5 * 10**-digits * 1e-6 or (
        f"{value:.{digits}f}" == f"{float(plain):.{digits}f}"
    )


def bare_numbers(page: str) -> list[str]:
    """Returns measured-looking numbers that stand without a record: decimals, powers, percent."""
    words = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    words = NUMBER_LINK.sub("", words)
    words = re.sub(r"`[^`]*`", "", words)
    words = re.sub(r"\[[^\]]*\]\([^)]*\)|https?://\S+|arXiv \d+\.\d+", "", words)
    return re.findall(r"\d+\.\d+(?:e-?\d+)?|\d+e-?\d+|\d+ %", words)


def described_fields(heading: str) -> set[str]:
    """Returns the fields that docs/metrics.md describes under a heading."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    part = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))
