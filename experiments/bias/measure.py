"""Runs the measurements of the bias experiment that have no records yet, and records them."""

import concurrent.futures
import itertools
import pathlib
import queue
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.bias.axes import GRADIENT_KINDS, NUM_THREADS, OPTIMIZER_LABELS, SCHEDULES
from experiments.bias.cells import CellRunner, make_draws
from experiments.bias.claim_kinds import Bootstrap
from experiments.bias.claims import identity_claims, sampling_claims
from experiments.common import claims
from staleness_grpo.runtime.progress import Progress
from staleness_grpo.runtime.records import Appender, read_jsonl, write_json


def measure(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes identities.json and cells.jsonl. Measurements that are complete are not repeated."""
    cells_path, identities_path = workdir / "cells.jsonl", workdir / "identities.json"
    finished = finished_cells(config, cells_path)
    missing = [gradient for gradient in GRADIENT_KINDS if gradient not in finished]
    identities_missing = not identities_path.exists()
    draws = make_draws(config)

    free_devices: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in itertools.islice(itertools.cycle(jax.local_devices()), NUM_THREADS):
        free_devices.put(device)

    def on_own_device(function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function in a thread whose programs run on a device that no other thread uses."""
        device = free_devices.get()
        try:
            with jax.default_device(device):
                return function(*args)
        finally:
            free_devices.put(device)

    def run_cells(gradient: str) -> list[dict]:
        runner = CellRunner(draws, gradient)
        blocks = itertools.product(OPTIMIZER_LABELS, SCHEDULES, config.max_lags)
        return [cell for block in blocks for cell in runner.block(*block)]

    with (
        Progress("parts", len(missing) + identities_missing) as progress,
        concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool,
    ):
        futures = {
            gradient: pool.submit(on_own_device, run_cells, gradient) for gradient in missing
        }
        if identities_missing:
            bootstrap = Bootstrap(np.random.default_rng([config.seed, 0]), config.num_resamples)
            identities = [
                pool.submit(on_own_device, identity_claims, draws, bootstrap),
                pool.submit(on_own_device, sampling_claims, draws),
            ]
        if missing:
            with Appender(cells_path, num_kept=0) as file:
                for gradient in GRADIENT_KINDS:
                    for cell in finished.get(gradient) or futures[gradient].result():
                        file.append(cell)
                    progress.advance(f"{gradient} gradients")
        if identities_missing:
            found = [claim for part in identities for claim in part.result()]
            write_json(identities_path, claims.records(found))
            progress.advance("fixed policies")


def finished_cells(config: ConfigDict, path: pathlib.Path) -> dict[str, list[dict]]:
    """Returns the recorded cells by kind of gradient. Kinds with missing cells are left out."""
    recorded: dict[str, list[dict]] = {}
    for cell in read_jsonl(path) if path.exists() else []:
        recorded.setdefault(cell["gradient"], []).append(cell)
    num_curves = len(OPTIMIZER_LABELS) * len(SCHEDULES) * len(config.max_lags) * config.num_draws
    return {
        gradient: cells
        for gradient, cells in recorded.items()
        if len(cells) == num_curves * config[gradient].num_learning_rates
    }
