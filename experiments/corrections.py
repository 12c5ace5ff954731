"""Every published staleness correction side by side: exact bias, variance, stability, cost.

    python -m experiments.corrections --workdir=DIR [--config=experiments/configs/corrections_full.py]

Writes bias.jsonl (exact bias and cosine, two paths), variance.jsonl (sampled gradients), cost.jsonl (timed updates),
cells.jsonl (trainings), summary.json and the figures. A second call computes what is missing.
"""

import json
import pathlib
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from experiments import cli


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures what is missing, then summarizes and draws."""
    import jax

    jax.config.update("jax_enable_x64", True)  # the bias is a small difference of near-equal gradients
    from experiments import bias_cells, corrections_cost, corrections_exact, corrections_stability, corrections_summary
    from experiments.figures import corrections as figures
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    draws = bias_cells.make_draws(config)
    bias = kept(workdir / "bias.jsonl", lambda: corrections_exact.bias_records(config, draws))
    variance = kept(workdir / "variance.jsonl", lambda: corrections_exact.variance_records(config, draws))
    cost = kept(workdir / "cost.jsonl", lambda: corrections_cost.cost_records(config))
    cells = corrections_stability.run(config, workdir / "cells.jsonl")
    metrics.write_json(workdir / "summary.json", corrections_summary.summarize(config, bias, variance, cost, cells))
    for path in figures.draw_all(workdir):
        print(path)
    print(workdir / "summary.json")


def kept(path: pathlib.Path, measure: Callable[[], Iterable[dict]]) -> list[dict]:
    """The records of a file; measured first if it is not there, and written whole or not at all."""
    from staleness_grpo import metrics

    if not path.exists():
        print(f"measuring {path.name}", flush=True)
        lines = [json.dumps(metrics.plain(record)) + "\n" for record in measure()]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(lines))
        partial.replace(path)
    return metrics.read_jsonl(path)


if __name__ == "__main__":
    from experiments import corrections_config

    cli.run(main, default_config="experiments/configs/corrections.py", validate=corrections_config.validate)
