"""A sweep's analysis finds the law of synthetic cells; claims, figures, and a second call."""

import json

import nbclient
import nbformat
import numpy as np
import pytest

from experiments.common import claims as common_claims
from experiments.common import cli
from experiments.configs import scaling_laws
from experiments.reproduce.paper import PAPER_CLAIMS
from experiments.sweep import __main__ as sweep
from experiments.sweep import analysis, claims, figures, laws
from staleness_grpo.runtime.records import plain, write_json
from tests.conftest import ROOT

LAGS = (0, 1, 2, 4, 8, 16, 32, 64)
RATES = (7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3)
EVERY, STEPS = 5, 300
FITTED: dict = {"rules": {}}


def synthetic_records(seeds=range(4)):
    """Returns cells that collapse at eta t_c = 0.243 if eta > 0.0115 / S, each with 5 % of noise.

    So the boundary is the larger of two bounds.
    """
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
                    "entropy": np.where(
                        np.arange(blocks) * EVERY >= (collapse or 2 * STEPS) - 25, 0.9, 0.3
                    ),
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
                        finite=True,
                        collapse_step=collapse,
                        stayed_down=None if collapse is None else True,
                        update_norm=30.0 * rate,
                        cosine=float(np.mean(traces["gradient_cosine"])),
                        trace_every=EVERY,
                        traces={name: list(values) for name, values in traces.items()},
                    )
                )
    return records


def synthetic_config():
    config = scaling_laws.get_config()
    config.steps, config.sweep.horizons = STEPS, (100, 200, STEPS)
    return config


def whole_summary(maps):
    """Returns what `main` writes to summary.json."""
    summary = analysis.summarize(maps, synthetic_config())
    return plain(summary | {common_claims.KEY: common_claims.records(claims.claims(summary))})


@pytest.fixture(scope="module")
def summary():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "RESAMPLES", 6)  # a hundred take most of a minute
        records = synthetic_records()
        return whole_summary({"main": records, "cyclic": records[::3]}), records


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
    # The boundary of the longest lag is 0.243 / T.
    assert summary["by_horizon"]["100"]["eta_max"]["64"] > 2 * summary["eta_max"]["64"]
    assert summary["g_upd"] == pytest.approx(30)
    assert summary["r_crit"] == pytest.approx(30 * 0.243, rel=0.1)
    # 0.243 over 0.0115: S = 1 has no boundary in the grid, and S > 16 does not count.
    assert summary["scale_free_ratio"] == pytest.approx(0.243 / 0.0115, rel=0.1)
    rules = summary["rules"]
    assert rules["max"]["held_out_log_likelihood"] > rules["min"]["held_out_log_likelihood"] + 20
    assert rules["max"]["held_out_balanced_accuracy"] > 0.9
    cyclic = summary["variants"]["cyclic"]
    assert cyclic["variant"] == cyclic["main"]


def test_signs_are_told_from_noise(summary):
    summary, records = summary
    alarms = summary["alarms"]
    assert alarms["entropy"]["found"] == 1 and alarms["entropy"]["false_alarms"] == 0
    assert alarms["entropy"]["median_lead"] == 20
    assert alarms["gradient_cosine"]["found"] < 0.5  # it was noise
    areas = summary["cosine"]["roc_area"]
    assert areas["relative_whole"] == areas["whole"]  # the ceiling was 0.5 everywhere
    stable = summary["cosine"]["median_by_lag"]["0"]["stable"]
    assert stable["relative"] == pytest.approx(stable["cosine"] / 0.5)


def test_a_map_without_a_boundary_is_counted_and_its_missing_figures_are_named():
    records = [record | {"collapse_step": None} for record in synthetic_records(range(2))]
    summary = whole_summary({"main": records})
    assert summary["num_cells"] == len(records) and summary["num_collapsed"] == 0
    # All rewards are the same before a fall, so no run gains anything.
    assert summary["outcomes"] == dict(learned=0, stalled=len(records), collapsed=0, recovered=0)
    assert summary["claims"] == [] and "rules" not in summary
    names = [sentence.split(":")[0] for sentence in summary["figures_left_out"]]
    assert names == [
        f"scaling_{name}" for name in ("collapse_time", "eta_max", "cosine", "anatomy")
    ]
    assert all("No boundary can be fitted." in line for line in summary["figures_left_out"])


def test_figures_that_the_records_cannot_carry_are_left_out_with_a_reason():
    records = synthetic_records(range(2))
    assert analysis.figures_left_out(records, FITTED) == {}
    recovered = [record | {"stayed_down": False} for record in records]
    assert list(analysis.figures_left_out(recovered, FITTED)) == ["anatomy"]
    one_rate = [record for record in records if record["learning_rate"] == RATES[0]]
    assert "two learning rates" in analysis.figures_left_out(one_rate, {})["reward"]


def test_claims_are_complete_and_not_all_true(summary):
    summary, _ = summary
    found = {claim.name: claim for claim in common_claims.read(summary)}
    # The main map, cosines, alarms, side by side, the cyclic map. No run of them learned.
    assert len(found) == len(summary["claims"]) == 8 + 2 + 5 + 1 + 8
    assert all((claim.unit, claim.n) == ("seeds", 4) for claim in found.values())
    assert all(claim.command == claims.COMMAND for claim in found.values())
    named_in_report = {
        name
        for stated in PAPER_CLAIMS
        if stated.job == "scaling_laws"
        for name in (*stated.evidence, *stated.beside)
    }
    assert named_in_report <= set(found)
    assert found["collapse_step_times_eta"].holds is True
    assert "cells" in found["collapse_step_times_eta"].note
    assert found["smaller_bound_is_best"].holds is False
    assert found["cyclic_smaller_bound_is_best"].claim.startswith("cyclic: ")
    # The cosine was noise.
    assert found["early_cosine"].holds is False
    assert found["relative_early_cosine"].measured < claims.MIN_ROC_AREA
    collapses = summary["variants"]["cyclic"]["main"]["collapsed"]
    assert found["cyclic_collapses"].measured == [collapses, collapses]


def test_a_claim_holds_or_not_where_the_paper_says_something_and_nowhere_else(summary):
    summary, _ = summary
    for claim in common_claims.read(summary):
        assert (claim.holds is None) == (claim.paper == ""), claim.name


@pytest.fixture
def results(summary, tmp_path):
    """Returns the folder of a finished sweep."""
    summary, records = summary
    for name, inside in (("cells", records), ("cells-cyclic", records[::3])):
        lines = [json.dumps(plain(record)) + "\n" for record in inside]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    write_json(tmp_path / "summary.json", summary)
    return tmp_path


@pytest.mark.slow
def test_the_notebook_draws_every_figure(results, monkeypatch):
    monkeypatch.setenv("RESULTS", str(results))
    notebook = nbformat.read(ROOT / "notebooks" / "scaling_laws.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 14  # of two maps
    printed = next(output.text for output in outputs if output.output_type == "stream")
    assert printed.count("collapse_step * eta is the same") == 2
    assert all(
        (results / f"scaling_{name}.pdf").stat().st_size > 5_000
        for name in ("map", "reward", "cosine")
    )


def test_a_gap_in_the_files_raises(results):
    summary = json.loads((results / "summary.json").read_text())
    del summary["by_horizon"]
    write_json(results / "summary.json", summary)
    with pytest.raises(KeyError, match="by_horizon"):
        figures.draw(results)


def test_a_second_call_on_a_finished_folder_draws_from_the_records_alone(results, capsys):
    def measure_again(config, workdir):
        raise AssertionError("a finished folder is not measured again")

    before = (results / "summary.json").read_bytes()
    cli.complete(measure_again, sweep.draw, synthetic_config(), results)
    first, *paths = capsys.readouterr().out.splitlines()
    assert first.endswith("finished already; its figures are drawn again from its records")
    assert len(paths) == 14 + 1 and str(results / "summary.json") in paths
    assert all((results / path).stat().st_size > 0 for path in paths)
    assert (results / "summary.json").read_bytes() == before
