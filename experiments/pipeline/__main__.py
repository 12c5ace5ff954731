"""Simulates the clock of asynchronous RL: the time of a learner step, and the lags of its rollouts.

    python -m experiments.pipeline --workdir=DIR \\
        [--config=experiments/configs/pipeline_limits.py] [--config.map=SWEEP_WORKDIR]

Each combination of a buffer rule, a lag bound S, a response limit and a seed is one simulation of
the cluster that `config.cluster` describes. No model is trained. cells.jsonl has a line for each.
The folder `traces` has the lags of each, which `lag.schedule=trace` replays in a training.

With --config.map, a finished map of `experiments.sweep` gives the learner steps to a reward, and
the summary has the time to it by S.

A call on an unfinished workdir simulates only cells that have no record yet.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli


def validate(config: ConfigDict) -> None:
    """Refuses a config that cannot be run. Raises FieldError."""
    from experiments.pipeline import validation

    validation.validate(config)


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates cells that have no record yet, then writes summary.json."""
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.pipeline.analysis import best_lags, summarize, times_to_target
    from experiments.pipeline.claims import claims
    from experiments.pipeline.measure import measure
    from staleness_grpo.runtime.records import read_jsonl, write_json

    write_run_files(workdir, config)
    cells = measure(config, workdir)
    summary = summarize(cells)
    if config.map is not None:
        map_cells = read_jsonl(pathlib.Path(config.map) / "cells.jsonl")
        times = times_to_target(summary, map_cells, config.target_reward)
        best = best_lags(summary, map_cells, config.target_reward)
        summary |= {"time_to_target": times, "best_lag": best}
    write_json(workdir / SUMMARY, summary | {KEY: records(claims(cells, summary))})


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records."""
    from experiments.pipeline import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(main, draw, default_config="experiments/configs/pipeline.py", validate=validate)
