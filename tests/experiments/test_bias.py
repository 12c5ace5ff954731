"""The bias experiment: its analysis on cells with a known law, what it refuses, and one tiny run."""

import importlib
import json
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest

from experiments import bias_config, bias_law, bias_law_claims
from experiments.bias_law import Cells
from staleness_grpo import metrics
from staleness_grpo.config import ConfigError
from tests.conftest import ROOT


def default_config():
    return importlib.import_module("experiments.configs.bias").get_config()


def made_up_cells(first_clipped=0.1, first_off=0.1):
    """bias = gain * eta * rms(age) below `first_off` (in S * eta), three times that from there on."""
    records = []
    for optimizer in ("sgd", "adam"):
        for schedule in ("constant", "cyclic"):
            for gradient in ("exact", "sampled"):
                for draw, gain in enumerate((0.5, 1.0, 2.0)):
                    for lag in (2, 4, 8, 16):
                        for rate in np.geomspace(1e-4, 1e-1, 13):
                            age = lag if schedule == "constant" else np.sqrt((lag - 1) * (2 * lag - 1) / 6)
                            bias = gain * rate * age * (3 if lag * rate >= first_off else 1)
                            records.append(
                                {
                                    "optimizer": optimizer,
                                    "schedule": schedule,
                                    "gradient": gradient,
                                    "draw": draw,
                                    "max_lag": lag,
                                    "learning_rate": rate,
                                    "s_eta": lag * rate,
                                    "eta_rms_age": rate * age,
                                    "bias": bias,
                                    "displacement": 2 * rate * age,
                                    "surrogate_gradient": 2.0,
                                    "noise": 0.0,
                                    "clip_fraction": 0.01 if lag * rate >= first_clipped else 0.0,
                                    "last_bias": bias,
                                    "last_displacement": 2 * rate * age,
                                    "smoothness": gain if lag == 16 and gradient == "exact" else None,
                                }
                            )
    return Cells(records)


def facts_of(cells):
    rng = np.random.default_rng(0)
    laws = {
        optimizer: {
            schedule: bias_law.summarize(cells.where(optimizer=optimizer, schedule=schedule), rng, 100)
            for schedule in ("constant", "cyclic")
        }
        for optimizer in ("sgd", "adam")
    }
    return laws, {fact["name"]: fact for fact in bias_law_claims.law_facts(cells, laws, rng, 100)}


def test_a_known_law_is_recovered():
    laws, facts = facts_of(made_up_cells())
    for law in (laws["sgd"]["constant"], laws["adam"]["cyclic"]):
        assert law["slope"] == pytest.approx(1.0) and law["r_squared"] == pytest.approx(1.0)
        assert law["gain"] == pytest.approx(1.0)
        assert law["end_minus_clip_in_grid_steps"] == 0.0 and law["share_within_one_step"] == 1.0
        assert 0.1 / law["grid_ratio"] ** 2 < law["max_s_eta_linear"] < 0.1
        tightness = law["lipschitz_tightness"]
        assert tightness["before_clipping"]["max"] == pytest.approx(0.5)
        assert tightness["after_clipping"]["min"] == pytest.approx(1.5)
    assert laws["sgd"]["cyclic"]["against_s_eta"]["slope"] > 1.02  # rms(age) is no multiple of S
    assert facts["sgd_constant_slope"]["holds"] and facts["adam_cyclic_same_line"]["holds"]
    assert facts["drift_law"]["measured"] == pytest.approx(1.0)


def test_the_notebook_prints_every_claim_and_draws_both_figures(tmp_path, monkeypatch):
    cells = made_up_cells()
    laws, facts = facts_of(cells)
    lines = [json.dumps(metrics.plain(record)) + "\n" for record in cells.records]
    (tmp_path / "cells.jsonl").write_text("".join(lines))
    metrics.write_json(tmp_path / "summary.json", laws | {"facts": list(facts.values())})
    monkeypatch.setenv("RESULTS", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "bias.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = next(output.text for output in outputs if output.output_type == "stream")
    assert all(fact["claim"] in printed for fact in facts.values())


def test_a_range_that_ends_before_clipping_is_noticed():
    laws, facts = facts_of(made_up_cells(first_clipped=0.1, first_off=0.02))
    assert laws["sgd"]["constant"]["end_minus_clip_in_grid_steps"] < -1
    assert not facts["sgd_constant_linear_range_end"]["holds"]
    assert not facts["sgd_constant_slope"]["holds"]


def test_missing_cells_raise():
    with pytest.raises(ValueError, match="incomplete"):
        made_up_cells().where(optimizer="lion")


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("num_draws", 1, "num_draws"),
        ("group_size", 1, "group_size"),
        ("max_lags", (4, 2, 1), "max_lags"),
        ("max_lags", (-1, 2, 4), "max_lags"),
        ("sgd.lowest_learning_rate", 0.0, "sgd.lowest_learning_rate"),
        ("sampled.batch_prompts", 9, "sampled.batch_prompts"),
        ("task.name", "arithmetic", "task.name"),
        ("task.difficulty", 1.5, "task.difficulty"),
        ("surrogate.clip_low", -0.2, "surrogate.clip_low"),
        ("policy.dtype", "float32", "policy.dtype"),
        ("policy.head_dim", 3, "policy.head_dim"),
    ],
)
def test_contradictions_are_refused_by_flag(flag, value, named):
    config = default_config()
    config.update_from_flattened_dict({flag: value})
    with pytest.raises(ConfigError, match=f"--config.{named}="):
        bias_config.validate(config)


def test_default_config_is_accepted():
    bias_config.validate(default_config())


@pytest.mark.slow
def test_tiny_run_writes_what_it_promises_and_skips_what_is_finished(tmp_path):
    command = [
        sys.executable, "-m", "experiments.bias", f"--workdir={tmp_path}", "--config.num_draws=2",
        "--config.num_prompts=4", "--config.max_lags=(1,4,32)", "--config.exact.num_learning_rates=6",
        "--config.sampled.num_learning_rates=3", "--config.sampled.num_batches=30000",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for optimizer in ("sgd", "adam"):
        for schedule in ("constant", "cyclic"):
            law = summary[optimizer][schedule]
            assert 0.9 < law["slope"] < 1.1 and law["slope_ci"][0] <= law["slope"] <= law["slope_ci"][1]
            assert {"r_squared", "max_s_eta_linear", "lipschitz_tightness"} <= set(law)
            assert law["exact_vs_bruteforce_error"] < 1e-12
    assert all({"claim", "measured", "interval", "n", "holds"} <= set(fact) for fact in summary["facts"])
    for name in ("config.json", "environment.json", "bias_law.png", "bias_law.pdf", "bias_range.png"):
        assert (tmp_path / name).stat().st_size > 0

    cells = (tmp_path / "cells.jsonl").read_bytes()
    lines = cells.decode().splitlines()
    assert len(lines) == 2 * 2 * 3 * 2 * (6 + 3)
    # A run broken off in the middle of its cells goes on, and ends with the same records.
    (tmp_path / "cells.jsonl").write_text("\n".join(lines[:150]) + "\n")  # the exact ones and a few
    (tmp_path / "summary.json").unlink()
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "cells.jsonl").read_bytes() == cells
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
