"""Measures what is missing of the four parts of the corrections experiment."""

import pathlib
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from experiments.bias.cells import make_draws
from experiments.corrections import cost, exact, stability
from staleness_grpo.runtime.records import read_jsonl, write_jsonl

Records = list[dict]


def measure(config: ConfigDict, workdir: pathlib.Path) -> tuple[Records, Records, Records, Records]:
    """Returns the records of (bias, variance, cost, cells), measured first where there are none."""
    draws = make_draws(config)
    return (
        recorded(workdir / "bias.jsonl", lambda: exact.bias_records(config, draws)),
        recorded(workdir / "variance.jsonl", lambda: exact.variance_records(config, draws)),
        recorded(workdir / "cost.jsonl", lambda: cost.cost_records(config)),
        stability.run(config, workdir / "cells.jsonl"),
    )


def recorded(path: pathlib.Path, make_records: Callable[[], Iterable[dict]]) -> Records:
    """Returns the records of a file; makes them first if it is not there, all or none."""
    if not path.exists():
        print(f"measuring {path.name}", flush=True)
        write_jsonl(path, make_records())
    return read_jsonl(path)
