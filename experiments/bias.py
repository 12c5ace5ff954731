"""The bias of stale rollouts, exact to rounding: how it grows with lag and learning rate, and where the law ends.

    python -m experiments.bias --workdir=DIR [--config=experiments/configs/bias.py] [--config.num_draws=4 ...]

Runs lagged GRPO on enumerable problems, each run trained with its own lag, for every lag, learning rate, optimizer
and schedule, with exact and with sampled gradients. At every learner step the bias
||H(theta_t, theta_{t-tau}) - H(theta_t, theta_t)|| is known exactly. Writes cells.jsonl (one line per run),
facts.json (identities at fixed policies), figures, and summary.json. What is finished is not computed again.
"""

import concurrent.futures
import itertools
import pathlib

from ml_collections import ConfigDict

from experiments import cli
from experiments.bias_config import validate

WORKERS = 2  # compilation and small operations use one core each


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Measures what is missing, then fits, draws and summarizes."""
    import jax

    if (workdir / "summary.json").exists():
        print(f"finished already: {workdir / 'summary.json'}")
        return
    jax.config.update("jax_enable_x64", True)  # the bias is a small difference of near-equal gradients
    from experiments.figures import bias as figures
    from staleness_grpo import metrics

    metrics.write_run_files(workdir, config)
    measure(config, workdir)
    summary = summarize(config, workdir)
    figures.draw(workdir)
    metrics.write_json(workdir / "summary.json", summary)
    holding = sum(fact["holds"] for fact in summary["facts"])
    print(f"{workdir / 'summary.json'}: {holding} of {len(summary['facts'])} facts hold")


def measure(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes facts.json and cells.jsonl, unless they are complete."""
    import numpy as np

    from experiments import bias_cells, bias_claims
    from staleness_grpo import metrics

    cells_path, facts_path = workdir / "cells.jsonl", workdir / "facts.json"
    finished = finished_cells(config, cells_path)
    missing = [gradient for gradient in bias_cells.GRADIENTS if gradient not in finished]
    draws = bias_cells.make_draws(config)

    def run_cells(gradient):
        runner = bias_cells.CellRunner(draws, gradient)
        blocks = itertools.product(bias_cells.OPTIMIZERS, bias_cells.SCHEDULES, config.max_lags)
        return [cell for block in blocks for cell in runner.block(*block)]

    with (
        metrics.Progress("parts", len(missing) + 1) as progress,
        concurrent.futures.ThreadPoolExecutor(WORKERS) as pool,
    ):
        futures = {gradient: pool.submit(run_cells, gradient) for gradient in missing}
        if not facts_path.exists():
            rng = np.random.default_rng([config.seed, 0])
            facts = pool.submit(bias_claims.measure_facts, draws, rng, config.num_resamples)
        if missing:
            writer = metrics.MetricsWriter(cells_path)
            for gradient in bias_cells.GRADIENTS:
                for cell in finished.get(gradient) or futures[gradient].result():
                    writer.write(cell)
                progress.advance(f"{gradient} gradients")
            writer.close()
        if not facts_path.exists():
            metrics.write_json(facts_path, facts.result())


def finished_cells(config: ConfigDict, path: pathlib.Path) -> dict[str, list[dict]]:
    """The cells on disk of every kind of gradient that is complete."""
    from experiments import bias_cells
    from staleness_grpo import metrics

    found = {}
    for cell in metrics.read_jsonl(path) if path.exists() else []:
        found.setdefault(cell["gradient"], []).append(cell)
    blocks = len(bias_cells.OPTIMIZERS) * len(bias_cells.SCHEDULES) * len(config.max_lags) * config.num_draws
    return {
        gradient: cells
        for gradient, cells in found.items()
        if len(cells) == blocks * config[gradient].num_learning_rates
    }


def summarize(config: ConfigDict, workdir: pathlib.Path) -> dict:
    """The numbers claimed, from the records alone."""
    import json

    import numpy as np

    from experiments import bias_law, bias_law_claims
    from staleness_grpo import metrics

    rng = np.random.default_rng([config.seed, 1])
    cells = bias_law.Cells(metrics.read_jsonl(workdir / "cells.jsonl"))
    facts = json.loads((workdir / "facts.json").read_text())
    error = next(fact["measured"] for fact in facts if fact["name"] == "exact_against_all_groups")
    laws = {}
    for optimizer in np.unique(cells["optimizer"]):
        for schedule in np.unique(cells["schedule"]):
            of_both = cells.where(optimizer=optimizer, schedule=schedule)
            law = bias_law.summarize(of_both, rng, config.num_resamples)
            laws.setdefault(str(optimizer), {})[str(schedule)] = {**law, "exact_vs_bruteforce_error": error}
    facts = bias_law_claims.law_facts(cells, laws, rng, config.num_resamples) + facts
    return {**laws, "facts": facts}


if __name__ == "__main__":
    cli.run(main, default_config="experiments/configs/bias.py", validate=validate)
