"""Writes a summary of numbers without claims, and prints it."""

import pathlib
from typing import Any

from experiments.common import claims
from experiments.common.workdir import SUMMARY
from staleness_grpo.runtime.records import plain, write_json


def write_and_print(summary: dict[str, Any], workdir: pathlib.Path) -> None:
    """Writes summary.json without any claim, and prints one line for each field."""
    written = plain(summary) | {claims.KEY: []}
    write_json(workdir / SUMMARY, written)
    for name, value in written.items():
        print(f"{name:34s} {value}")
