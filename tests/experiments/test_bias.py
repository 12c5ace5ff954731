"""Tests the bias experiment: its analysis of a known law, what it refuses, and one tiny run."""

import contextlib
import importlib
import itertools
import json
import subprocess
import sys
import threading
import types

import nbclient
import nbformat
import numpy as np
import pytest

from experiments.bias import figures, law, law_claims, measure, validation
from experiments.bias.claim_kinds import Bootstrap
from experiments.bias.law import CellTable
from experiments.common.claims import Claim, read, records
from staleness_grpo.config.defaults import field_value
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json, write_json, write_jsonl
from tests.conftest import ROOT
from tests.helpers.pages import described_fields

# The measurements at fixed policies.
IDENTITIES = (
    "exact_against_all_groups",
    "diagonal_is_zero",
    "phi_gradient_is_minus_h",
    "fixed_length_is_a_gradient_field",
    "fixed_length_three_levels",
    "fixed_length_angle",
    "variable_length_angle",
    "sequence_is_leaves_group_statistics",
    "sequence_is_unbiased_without_std",
    "h_is_discontinuous",
    "float32_error",
    "sampled_mean_fresh",
    "sampled_error_fresh",
    "sampled_mean_stale",
    "sampled_error_stale",
)


def default_config():
    return importlib.import_module("experiments.configs.bias").get_config()


def made_up_cells(first_clipped=0.1, first_off=0.1):
    """Makes cells with bias = gain * eta * rms(age) below `first_off`, and three times that above.

    Both arguments are values of S * eta.
    """
    cells = []
    for optimizer, schedule, gradient, (draw, gain), lag, rate in itertools.product(
        ("sgd", "adam"),
        ("constant", "cyclic"),
        ("exact", "sampled"),
        enumerate((0.5, 1.0, 2.0)),
        (2, 4, 8, 16),
        np.geomspace(1e-4, 1e-1, 13).tolist(),
    ):
        age = lag if schedule == "constant" else np.sqrt((lag - 1) * (2 * lag - 1) / 6)
        bias = gain * rate * age * (3 if lag * rate >= first_off else 1)
        cells.append(
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
    return CellTable(cells)


def claims_of(cells):
    """Returns the laws by optimizer and schedule, and the claims by name."""
    bootstrap = Bootstrap(np.random.default_rng(0), num_resamples=100)
    laws = {
        optimizer: {
            schedule: law.summarize(cells.where(optimizer=optimizer, schedule=schedule), bootstrap)
            for schedule in ("constant", "cyclic")
        }
        for optimizer in ("sgd", "adam")
    }
    return laws, {claim.name: claim for claim in law_claims.law_claims(cells, laws, bootstrap)}


def test_a_known_law_is_recovered():
    laws, claims = claims_of(made_up_cells())
    for known in (laws["sgd"]["constant"], laws["adam"]["cyclic"]):
        assert known["slope"] == pytest.approx(1.0) and known["r_squared"] == pytest.approx(1.0)
        assert known["gain"] == pytest.approx(1.0)
        assert known["end_minus_clip_in_grid_steps"] == 0.0
        assert known["share_within_one_step"] == 1.0
        assert 0.1 / known["grid_ratio"] ** 2 < known["max_s_eta_linear"] < 0.1
        tightness = known["lipschitz_tightness"]
        assert tightness["before_clipping"]["max"] == pytest.approx(0.5)
        assert tightness["after_clipping"]["min"] == pytest.approx(1.5)
    assert laws["sgd"]["cyclic"]["against_s_eta"]["slope"] > 1.02  # rms(age) is no multiple of S
    assert claims["sgd_constant_slope"].holds and claims["adam_cyclic_same_line"].holds
    assert claims["drift_law"].measured == pytest.approx(1.0)
    assert claims["sgd_lipschitz_before_clipping"].holds
    assert claims["sgd_lipschitz_before_clipping"].measured == pytest.approx(0.5)
    assert claims["sgd_lipschitz_after_clipping"].measured == pytest.approx(1.5)


def test_only_predictions_hold_or_do_not_and_only_the_papers_law_is_the_papers():
    _, claims = claims_of(made_up_cells())
    findings = {name for name, claim in claims.items() if claim.holds is None}
    both = [
        f"{optimizer}_{name}"
        for optimizer in ("sgd", "adam")
        for name in (
            "cyclic_against_s_eta",
            "sampled_against_displacement",
            "lipschitz_tightness",
            "lipschitz_after_clipping",
        )
    ]
    assert findings == {"drift_crossover", *both}
    named = {name for name, claim in claims.items() if claim.paper}
    assert named == {"sgd_constant_slope", "adam_constant_slope"}
    for claim in claims.values():
        assert isinstance(claim.holds, bool | None) and claim.n > 0 and claim.unit
        assert claim.command == "python -m experiments.bias --workdir=DIR"


@pytest.mark.slow
def test_the_notebook_prints_every_claim_and_draws_both_figures(tmp_path, monkeypatch):
    cells = made_up_cells()
    laws, claims = claims_of(cells)
    write_jsonl(tmp_path / "cells.jsonl", cells.records)
    write_json(tmp_path / "summary.json", laws | {"claims": records(list(claims.values()))})
    monkeypatch.setenv("RESULTS", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "bias.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = next(output.text for output in outputs if output.output_type == "stream")
    assert all(claim.claim in printed for claim in claims.values())


def test_a_range_that_ends_before_clipping_is_noticed():
    laws, claims = claims_of(made_up_cells(first_clipped=0.1, first_off=0.02))
    assert laws["sgd"]["constant"]["end_minus_clip_in_grid_steps"] < -1
    assert claims["sgd_constant_linear_range_end"].holds is False
    assert claims["sgd_constant_slope"].holds is False


def test_missing_cells_raise():
    with pytest.raises(KeyError, match="incomplete"):
        made_up_cells().where(optimizer="lion")


def test_figures_are_drawn_from_the_cells_alone_and_a_gap_in_them_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="cells.jsonl is missing"):
        figures.draw(tmp_path)
    cells = made_up_cells().records
    gaps = {
        "no cell has .*'draw': 0, 'max_lag': 4, 'learning_rate'": cells[:13] + cells[14:],
        "no cell has .*'sampled'": [cell for cell in cells if cell["gradient"] == "exact"],
        "no 'displacement'": [
            {name: cell[name] for name in cell if name != "displacement"} for cell in cells
        ],
    }
    for message, incomplete in gaps.items():
        write_jsonl(tmp_path / "cells.jsonl", incomplete)
        with pytest.raises(KeyError, match=message):
            figures.draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.jsonl"]
    write_jsonl(tmp_path / "cells.jsonl", cells)
    for path in figures.draw(tmp_path):
        assert path.stat().st_size > 0


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
    with pytest.raises(FieldError) as refused:
        validation.validate(config)
    error = refused.value.with_value(lambda field: field_value(config, field))
    line = str(FlagError.of_field(error))
    assert line.startswith(f"--config.{named}={field_value(config, named)}: ")


def test_default_config_is_accepted():
    validation.validate(default_config())


@pytest.fixture
def two_devices(monkeypatch):
    """Gives two devices, nothing to compute, and the list of (kind of gradient, device) in use."""
    used, here = [], threading.local()

    @contextlib.contextmanager
    def default_device(device):
        here.device = device
        yield

    fake = types.SimpleNamespace(local_devices=lambda: ["a", "b"], default_device=default_device)
    monkeypatch.setattr(measure, "jax", fake)
    monkeypatch.setattr(measure, "make_draws", lambda config: None)
    monkeypatch.setattr(measure, "identity_claims", lambda *args: [])
    monkeypatch.setattr(measure, "sampling_claims", lambda *args: [])
    return used, here


def test_threads_that_measure_at_the_same_time_have_different_devices(
    two_devices, monkeypatch, tmp_path
):
    (used, here), both = two_devices, threading.Barrier(2, timeout=30)

    class Runner:
        def __init__(self, draws, gradient):
            both.wait()
            used.append((gradient, here.device))

        def block(self, *args):
            return []

    monkeypatch.setattr(measure, "CellRunner", Runner)
    measure.measure(default_config(), tmp_path)
    assert dict(used).keys() == {"exact", "sampled"} and set(dict(used).values()) == {"a", "b"}
    assert read_json(tmp_path / "identities.json") == []


def test_an_error_in_a_thread_is_raised_and_no_other_waits_for_its_device(
    two_devices, monkeypatch, tmp_path
):
    def fail(draws, gradient):
        raise ValueError(gradient)

    monkeypatch.setattr(measure, "CellRunner", fail)
    with pytest.raises(ValueError, match="exact"):
        measure.measure(default_config(), tmp_path)


@pytest.mark.slow
def test_tiny_run_writes_what_it_promises_and_skips_what_is_finished(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.bias",
        f"--workdir={tmp_path}",
        "--config.num_draws=2",
        "--config.num_prompts=4",
        "--config.max_lags=(1,4,32)",
        "--config.exact.num_learning_rates=6",
        "--config.sampled.num_learning_rates=3",
        "--config.sampled.num_batches=30000",
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for optimizer in ("sgd", "adam"):
        for schedule in ("constant", "cyclic"):
            measured = summary[optimizer][schedule]
            low, high = measured["slope_ci"]
            assert 0.9 < measured["slope"] < 1.1 and low <= measured["slope"] <= high
            assert {"r_squared", "max_s_eta_linear", "lipschitz_tightness"} <= set(measured)
            assert measured["exact_vs_bruteforce_error"] < 1e-12
    claims = {claim.name: claim for claim in read(summary)}
    assert len(claims) == len(summary["claims"])
    assert [Claim(**fields) for fields in read_json(tmp_path / "identities.json")] == [
        claim for claim in claims.values() if claim.name in IDENTITIES
    ]
    assert {name for name in IDENTITIES if claims[name].holds is None} == {
        "fixed_length_three_levels",
        "fixed_length_angle",
        "variable_length_angle",
        "float32_error",
    }
    for name in (
        "config.json",
        "environment.json",
        "bias_law.png",
        "bias_law.pdf",
        "bias_range.png",
    ):
        assert (tmp_path / name).stat().st_size > 0

    cells = (tmp_path / "cells.jsonl").read_bytes()
    fields = json.loads(cells.splitlines()[0])
    assert set(fields) == described_fields("cells.jsonl of `experiments.bias`")
    lines = cells.decode().splitlines()
    assert len(lines) == 2 * 2 * 3 * 2 * (6 + 3)
    # A run broken off in the middle of its cells goes on, and ends with the same records.
    (tmp_path / "cells.jsonl").write_text("\n".join(lines[:150]) + "\n")  # the exact ones and a few
    (tmp_path / "summary.json").unlink()
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "cells.jsonl").read_bytes() == cells
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
