"""Measures those of the experiment's four parts that have no records yet."""

import pathlib
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from experiments.bias.cells import make_draws
from experiments.corrections import bias, cost, stability, variance
from staleness_grpo.runtime.records import read_jsonl, write_jsonl

Records = list[dict]


def measure(config: ConfigDict, workdir: pathlib.Path) -> tuple[Records, Records, Records, Records]:
    """Returns the records of (bias, variance, cost, cells).

    The module `stability` trains the cells.
    Parts whose records are in the workdir are not measured again. Only the trainings can be
    continued after an interruption: the other parts start again.
    """
    draws = make_draws(config)
    return (
        read_or_measure(workdir / "bias.jsonl", lambda: bias.bias_records(config, draws)),
        read_or_measure(
            workdir / "variance.jsonl", lambda: variance.variance_records(config, draws)
        ),
        read_or_measure(workdir / "cost.jsonl", lambda: cost.cost_records(config)),
        stability.train_cells(config, workdir / "cells.jsonl"),
    )


def read_or_measure(path: pathlib.Path, make_records: Callable[[], Iterable[dict]]) -> Records:
    """Returns the records in a file.

    If there is no file, the records are made first. The file then appears with all of them at once.
    """
    if not path.exists():
        print(f"measuring {path.name}", flush=True)
        write_jsonl(path, make_records())
    return read_jsonl(path)
