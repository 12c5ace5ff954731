"""Compares all published staleness corrections: exact bias, variance, stability and cost.

    python -m experiments.corrections --workdir=DIR \\
        [--config=experiments/configs/corrections_full.py]

It writes into the workdir:

- bias.jsonl: exact bias and cosine on two trajectories.
- variance.jsonl: the variance of sampled gradients.
- cost.jsonl: timed updates.
- cells.jsonl: trainings.
- summary.json and the figures.

A call on an unfinished workdir measures only the parts without records.
"""

import pathlib

from ml_collections import ConfigDict

from experiments.common import cli
from experiments.corrections.validation import validate


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures the parts without records, then writes summary.json."""
    import jax

    # The bias is a small difference of near-equal gradients.
    jax.config.update("jax_enable_x64", True)
    from experiments.common.claims import KEY, records
    from experiments.common.workdir import SUMMARY, write_run_files
    from experiments.corrections.analysis import summarize
    from experiments.corrections.claims import claims, reading
    from experiments.corrections.measure import measure
    from staleness_grpo.runtime.records import write_json

    write_run_files(workdir, config)
    summary = summarize(config, *measure(config, workdir))
    sentences = {KEY: records(claims(config, summary)), "reading": reading(config, summary)}
    write_json(workdir / SUMMARY, summary | sentences)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws the figures of a finished workdir from its records."""
    from experiments.corrections import figures

    return figures.draw(workdir)


if __name__ == "__main__":
    cli.run(main, draw, default_config="experiments/configs/corrections.py", validate=validate)
