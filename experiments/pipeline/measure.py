"""Simulates the cells that have no record yet, and writes their traces."""

import pathlib

from ml_collections import ConfigDict

from experiments.pipeline.grid import Cell, cells, make_cell
from staleness_grpo.pipeline.measures import measure as measures_of
from staleness_grpo.pipeline.measures import timeline
from staleness_grpo.pipeline.simulation import Result, simulate
from staleness_grpo.pipeline.traces import trace_records
from staleness_grpo.runtime.records import Appender, read_jsonl, write_jsonl

CELLS, TIMELINES, TRACES = "cells.jsonl", "timelines.jsonl", "traces"
SHOWN_STEPS, SHOWN_SLOTS = 8, 16  # of a timeline


def measure(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Returns the record of every cell; simulates those without one first.

    Cells of the first seed have a trace and a timeline too.
    """
    path = workdir / CELLS
    recorded = {record["cell"] for record in read_jsonl(path)} if path.exists() else set()
    (workdir / TRACES).mkdir(exist_ok=True)
    with Appender(path) as records, Appender(workdir / TIMELINES) as timelines:
        for cell in cells(config):
            if cell.name not in recorded:
                cluster, rule = make_cell(config, cell)
                result = simulate(cluster, rule, config.steps, cell.seed)
                if cell.seed == config.seeds[0]:
                    write_jsonl(workdir / TRACES / f"{cell.name}.jsonl", trace_records(result))
                    timelines.append({"cell": cell.name} | shown(result, config))
                records.append(cell_record(cell, result, config.warm_up))
    return read_jsonl(path)


def shown(result: Result, config: ConfigDict) -> dict:
    """Returns the timeline of the first steps after the warm-up."""
    return timeline(result, config.warm_up, SHOWN_STEPS, SHOWN_SLOTS)


def cell_record(cell: Cell, result: Result, warm_up: int) -> dict:
    """Returns a cell's line in cells.jsonl."""
    return {
        "cell": cell.name,
        "buffer": cell.buffer,
        "max_lag": cell.max_lag,
        "limit": cell.limit,
        "seed": cell.seed,
        "keeps_bound": result.rule.keeps_bound,
        **measures_of(result, warm_up),
    }
