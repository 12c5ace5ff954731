import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import nbclient
import nbformat
import numpy as np
import pytest

from experiments import sweep, sweep_grid, sweep_statistics, sweep_summary
from experiments.configs import scaling_laws, scaling_laws_full
from experiments.figures import scaling
from staleness_grpo import metrics, sweep_runner
from staleness_grpo.config import ConfigError, FlagError
from tests.conftest import ROOT

LAGS = (0, 1, 2, 4, 8, 16, 32, 64)
RATES = (7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3)
EVERY, STEPS = 5, 300


def synthetic_records(seeds=range(4)):
    """Cells that collapse at eta t_c = 0.24 if eta > 0.008 / S, each with 5 % of noise: the larger of two bounds."""
    rng = np.random.default_rng(0)
    records = []
    for seed in seeds:
        for lag in LAGS:
            for rate in RATES:
                boundary = 0.0115 / max(lag, 1e-9) * np.exp(0.05 * rng.normal())
                time = EVERY * round(0.243 / rate * np.exp(0.05 * rng.normal()) / EVERY)
                collapse = time if rate > boundary and time < STEPS - 20 else None
                blocks = STEPS // EVERY
                down = np.arange(blocks) * EVERY >= (collapse or STEPS)
                traces = {
                    "eval_reward": np.where(down, 0.01, 0.8),
                    "clip_fraction": np.full(blocks, min(1.0, 2 * rate * lag)),
                    "drift_from_behavior": np.full(blocks, 30.0 * rate * lag),
                    "update_norm": np.full(blocks, 30.0 * rate),
                    "gradient_cosine": np.full(blocks, 0.1 + 0.05 * rng.normal()),
                    "gradient_cosine_ceiling": np.where(np.arange(blocks) % 5, np.nan, 0.5),
                    # Rises 20 to 25 steps before a collapse, by more than ever in a stable run.
                    "entropy": np.where(np.arange(blocks) * EVERY >= (collapse or 2 * STEPS) - 25, 0.9, 0.3),
                    "log_ratio_second_moment": np.full(blocks, 0.1),
                }
                records.append(
                    dict(
                        cell=f"S{lag}-eta{rate:g}-seed{seed}",
                        max_lag=lag,
                        learning_rate=rate,
                        seed=seed,
                        steps=STEPS,
                        steps_run=STEPS,
                        collapse_step=collapse,
                        stayed_down=None if collapse is None else True,
                        update_norm=30.0 * rate,
                        cosine=float(np.mean(traces["gradient_cosine"])),
                        trace_every=EVERY,
                        traces={name: list(values) for name, values in traces.items()},
                    )  # fmt: skip
                )
    return records


def synthetic_config():
    config = scaling_laws.get_config()
    config.steps, config.sweep.horizons = STEPS, (100, 200, STEPS)
    return config


@pytest.fixture(scope="module")
def summary():
    config = synthetic_config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_statistics, "RESAMPLES", 6)  # a hundred take most of a minute
        records = synthetic_records()
        return metrics.plain(sweep_summary.summarize({"main": records, "cyclic": records[::3]}, config)), records


def test_the_summary_finds_the_law_that_made_the_cells(summary):
    summary, _ = summary
    product = summary["collapse_step_times_eta"]
    assert product["mean"] == pytest.approx(0.243, rel=0.03)
    assert product["cv_of_runs"] < 0.1
    assert summary["collapse_time"]["eta_exponent"] == pytest.approx(-1, abs=0.1)
    assert summary["collapse_time"]["s_exponent"] == pytest.approx(0, abs=0.1)
    assert summary["collapse_time"]["n_censored"] > 0
    assert summary["eta_max_slope"]["flat"]["slope"] == pytest.approx(0, abs=0.1)
    assert summary["eta_max"]["4"] == pytest.approx(0.0115 / 4, rel=0.2)
    assert summary["by_horizon"]["300"]["eta_max"] == summary["eta_max"]
    assert summary["by_horizon"]["100"]["eta_max"]["64"] > 2 * summary["eta_max"]["64"]  # 0.24 / T
    assert summary["g_upd"] == pytest.approx(30)
    assert summary["r_crit"] == pytest.approx(30 * 0.243, rel=0.1)
    rules = summary["rules"]
    assert rules["max"]["held_out_log_likelihood"] > rules["min"]["held_out_log_likelihood"] + 20
    assert rules["max"]["held_out_balanced_accuracy"] > 0.9
    cyclic = summary["variants"]["cyclic"]
    assert cyclic["variant"] == cyclic["main"]


def test_signs_are_told_from_noise(summary):
    summary, records = summary
    alarms = summary["alarms"]
    assert alarms["entropy"]["found"] == 1 and alarms["entropy"]["false_alarms"] == 0
    assert alarms["entropy"]["median_lead"] == 25
    assert alarms["gradient_cosine"]["found"] < 0.5  # it was noise
    areas = summary["cosine"]["roc_area"]
    assert areas["relative_whole"] == areas["whole"]  # the ceiling was 0.5 everywhere
    stable = summary["cosine"]["median_by_lag"]["0"]["stable"]
    assert stable["relative"] == pytest.approx(stable["cosine"] / 0.5)


def test_a_map_without_a_boundary_is_counted_and_not_fitted():
    records = [record | {"collapse_step": None} for record in synthetic_records(range(2))]
    summary = sweep_summary.summarize({"main": records}, synthetic_config())
    assert summary["num_cells"] == len(records) and summary["num_collapsed"] == 0
    assert summary["claims"] == [] and "rules" not in summary


def test_claims_are_complete_and_not_all_true(summary):
    summary, _ = summary
    assert len(summary["claims"]) == 7 + 2 + 5 + 1 + 7  # main map, cosines, alarms, side by side, the cyclic map
    for claim in summary["claims"]:
        assert set(claim) == {"claim", "paper", "measured", "interval", "n", "holds", "command"}
    holds = {claim["claim"].split(":")[0]: claim["holds"] for claim in summary["claims"]}
    assert holds["collapse_step * eta is the same for all S >= 16"] is True
    assert [value for name, value in holds.items() if name.startswith("the smaller of the two")] == [False]
    assert [value for name, value in holds.items() if name.startswith("the cosine")] == [False] * 2  # it was noise


@pytest.fixture
def results(summary, tmp_path):
    """A finished sweep's folder."""
    summary, records = summary
    for name, inside in (("cells", records), ("cells-cyclic", records[::3])):
        lines = [json.dumps(metrics.plain(record)) + "\n" for record in inside]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    metrics.write_json(tmp_path / "summary.json", summary)
    return tmp_path


def test_the_notebook_draws_every_figure(results, monkeypatch):
    monkeypatch.setenv("RESULTS", str(results))
    notebook = nbformat.read(ROOT / "notebooks" / "scaling_laws.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 12  # of two maps
    claims = next(output.text for output in outputs if output.output_type == "stream")
    assert claims.count("collapse_step * eta") == 2
    assert all((results / f"scaling_{name}.pdf").stat().st_size > 5_000 for name in ("map", "reward", "cosine"))


def test_a_gap_in_the_files_raises(results):
    summary = json.loads((results / "summary.json").read_text())
    del summary["by_horizon"]
    metrics.write_json(results / "summary.json", summary)
    with pytest.raises(KeyError, match="by_horizon"):
        scaling.draw_all(results)


@pytest.mark.parametrize("config", [scaling_laws.get_config(), scaling_laws_full.get_config()])
def test_shipped_configs_are_valid_and_their_cells_have_names_of_their_own(config):
    sweep_grid.validate(config)
    for variant in sweep_grid.variant_configs(config).values():
        grid = variant.sweep
        cells = sweep_grid.cells(variant)
        assert len(cells) == len(grid.max_lags) * len(grid.learning_rates) * len(grid.seeds)
        assert {cell.warm_start.seed for cell in cells.values()} == set(range(min(2, len(grid.seeds))))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("sweep.max_lags", (0, 600), "sweep.max_lags"),
        ("sweep.seeds", (), "sweep.seeds"),
        ("sweep.learning_rates", (1e-3, 1e-3), "sweep.learning_rates"),
        ("sweep.chunk_size", 0, "sweep.chunk_size"),
        ("eval_every", 7, "eval_every"),
        ("lag.schedule", "uniform", "lag.schedule"),
        ("variants.cyclic.lag.schedule", "uniform", "variants.cyclic.lag.schedule"),
        ("optimizer.b1", 1.5, "optimizer.b1"),
    ],
)
def test_bad_sweeps_are_refused_by_flag(field, value, named):
    config = scaling_laws.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=f"^--config.{named}="):
        sweep_grid.validate(config)


@pytest.mark.parametrize("value", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(FlagError, match=f"^--share={re.escape(value)}: give I/N"):
        sweep.Share.parse(value)


def test_shares_run_every_cell_once_and_are_gathered(tmp_path, monkeypatch):
    """A share that is run again, or after the whole, runs nothing; a share that is missing is made up for."""
    config = scaling_laws.get_config()
    config.sweep.update(dict(max_lags=(0, 1), learning_rates=(1e-3, 2e-3), seeds=(0, 1)))
    ran = []

    def run_cells(cells, **settings):
        ran.extend(cells)
        return ({"cell": cell, "steps_run": 1} for cell in reversed(cells))

    monkeypatch.setattr(sweep_runner, "run_cells", run_cells)
    names = list(sweep_grid.cells(config))
    for index in (2, 3, 2):
        records = sweep.run_map("main", config, tmp_path, sweep.Share(index, 3))
        assert [record["cell"] for record in records] == names[index - 1 :: 3]
    assert ran == names[1::3] + names[2::3]
    parts = {path: path.read_bytes() for path in tmp_path.glob("cells.share-*")}
    records = sweep.run_map("main", config, tmp_path)
    assert [record["cell"] for record in records] == names and sorted(ran) == sorted(names)
    assert sweep.run_map("main", config, tmp_path, sweep.Share(1, 3)) == [] and len(ran) == len(names)
    assert parts == {path: path.read_bytes() for path in parts}
    (tmp_path / "alone").mkdir()
    sweep.run_map("main", config, tmp_path / "alone")
    assert (tmp_path / "alone" / "cells.jsonl").read_bytes() == (tmp_path / "cells.jsonl").read_bytes()


TINY = """
from ml_collections import ConfigDict
from experiments.configs import scaling_laws
def get_config():
    config = scaling_laws.get_config()
    config.update(dict(steps=60, num_prompts=4, group_size=4, eval_every=5))
    config.warm_start.steps = 0
    config.policy.update(dict(num_layers=1, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=16))
    config.task = ConfigDict(dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8))
    config.sweep.update(dict(max_lags=(0, 1, 2, 4, 8, 16), learning_rates=(1e-3, 1e-2, 1e-1), seeds=(0, 1, 2, 3)))
    config.sweep.num_workers = 2
    config.variants = ConfigDict()
    return config
"""
CELLS = """
import pathlib, sys
from experiments import cli, sweep, sweep_grid
from staleness_grpo import compile_cache
if __name__ == "__main__":
    compile_cache.enable(pathlib.Path(".cache/jax"))
    folder = pathlib.Path(sys.argv[1])
    (config,) = sweep_grid.variant_configs(cli.load_config(folder / "tiny.py")).values()
    sweep.run_map("main", config, folder)
"""


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_like_one_that_was_not(tmp_path):
    def start(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "tiny.py").write_text(TINY)
        (tmp_path / "run_cells.py").write_text(CELLS)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([sys.executable, tmp_path / "run_cells.py", folder], cwd=ROOT, env=environment)

    assert start("whole").wait() == 0
    whole = metrics.read_jsonl(tmp_path / "whole" / "cells.jsonl")
    assert len(whole) == 72
    path = tmp_path / "killed" / "cells.jsonl"
    rng = random.Random(0)
    counts = []
    for kill in range(3):
        process = start("killed")
        count = (kill + 1) * 15 + rng.randrange(10)
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
            time.sleep(0.005)
        time.sleep(0.05 * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was running
        counts.append(path.read_bytes().count(b"\n"))
        assert counts[-1] >= count
    assert counts == sorted(counts) and counts[-1] < 72
    assert start("killed").wait() == 0
    killed = metrics.read_jsonl(path)
    for record in whole + killed:
        record.pop("time_cell")
    assert killed == whole
