"""The corrections experiment: its analysis on records with known answers, what it refuses, and one tiny run."""

import html
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.configs import corrections, corrections_full
from experiments.corrections import analysis as corrections_summary
from experiments.corrections import exact as corrections_exact
from experiments.corrections import figures
from experiments.corrections import stability as corrections_stability
from experiments.corrections import validation as corrections_config
from experiments.reproduce import report
from staleness_grpo.errors import FieldError
from staleness_grpo.objective.corrections.registry import CORRECTIONS
from staleness_grpo.runtime.records import plain, read_jsonl, write_json
from tests.conftest import ROOT


def bias_records(config):
    """Relative bias s_eta, half of that for token_tis and a tenth for dr_grpo; an offset for aipo."""
    return [
        {
            "correction": name, "path": path, "draw": draw, "s_eta": s_eta,
            "relative_bias": s_eta * {"token_tis": 0.5, "dr_grpo": 0.1}.get(name, 1.0) * (1 + 0.01 * draw),
            "cosine": 1 - s_eta, "offset": 0.1 if name == "aipo" else 0.0,
        }
        for name in config.corrections if not CORRECTIONS[name].reads_advantage_size
        for path in ("synchronous", "own") for draw in range(4) for s_eta in config.s_eta
    ]  # fmt: skip


def variance_records(config):
    """Draws differ a lot, corrections within a draw by a factor of 2."""
    return [
        {
            "correction": name,
            "draw": draw,
            "relative_variance": 10.0**draw * (2.0 if name == "none" else 1.0),
        }
        for name in config.corrections
        for draw in range(4)
    ]


def cell_records(config, boundary):
    """Cells that collapse above the method's learning rate."""
    records = []
    for method in (*config.trained, *config.trained_update_rules):
        for lag in config.stability.sweep.max_lags:
            for rate in config.stability.sweep.learning_rates:
                for seed in config.stability.sweep.seeds:
                    edge = boundary.get(method, 1.2e-3) * (1.3 if seed == 3 else 1.0)
                    collapsed = rate > edge
                    records.append(
                        {
                            "method": method, "max_lag": lag, "learning_rate": rate, "seed": seed, "steps": 300,
                            "steps_run": 300, "collapse_step": 100 if collapsed else None,
                            "final": 0.0 if collapsed else 0.8 + rate,
                        }
                    )  # fmt: skip
    return records


def cost_records(config):
    """An update of token_tis takes half as long again; the machine slows down from round to round."""
    return [
        {
            "method": name,
            "round": number,
            "time_update": (1 + number) * (1.5 if name == "token_tis" else 1.0),
        }
        for number in range(5)
        for name in config.trained
    ]


@pytest.fixture(scope="module")
def summary():
    config = corrections.get_config()
    config.trained = ("grpo_clip", "none", "token_tis", "cispo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corrections_summary, "RESAMPLES", 10)
        cells = cell_records(config, {"token_tis": 2.4e-3, "cispo": 2.4e-3, "none": 1.2e-3})
        found = corrections_summary.summarize(
            config, bias_records(config), variance_records(config), cost_records(config), cells
        )
    return plain(found)


def test_rows_hold_what_made_the_records(summary):
    rows = summary["corrections"]
    assert set(rows) == {*CORRECTIONS, "vcpo", "gac"}
    assert rows["none"]["relative_bias"]["own"]["0.015625"]["mean"] == pytest.approx(
        0.015625 * 1.015
    )
    assert rows["aipo"]["offset"] == {
        "mean": pytest.approx(0.1),
        "interval": [pytest.approx(0.1)] * 2,
        "n": 4,
    }
    assert rows["none"]["variance_ratio"]["mean"] == pytest.approx(2.0)
    assert rows["none"]["variance_ratio"]["interval"] == pytest.approx([2.0, 2.0])
    assert rows["token_tis"]["update_time_ratio"] == {"median": 1.5, "interval": [1.5, 1.5], "n": 5}
    assert (
        rows["none"]["update_time_ratio"]["median"] == 1.0
        and "update_time_ratio" not in rows["aipo"]
    )
    assert (
        rows["grpo_clip"]["best_reward"]["32"]["learning_rate"] == 1e-3
    )  # the highest at which all seeds are stable
    assert rows["cispo"]["best_reward"]["32"]["learning_rate"] == 2e-3
    ratio = rows["token_tis"]["eta_max_over_baseline"]["32"]
    assert ratio["ratio"] == pytest.approx(2.0, rel=0.2) and ratio["interval"][0] > 1
    low, high = rows["none"]["eta_max_over_baseline"]["32"]["interval"]
    assert low == high == 1.0  # the same cells, resampled together
    assert (
        rows["none"]["final_reward"]["8"]["mean"] == rows["grpo_clip"]["final_reward"]["8"]["mean"]
    )
    assert "relative_bias" not in rows["r1_reward_stable_reinforce"]  # reads the size of A
    # grpo_clip and none share their bias and boundary; of the two that are more stable, token_tis is less biased.
    assert summary["bias_and_stability"]["32"] == {
        "spearman": pytest.approx(-1 / np.sqrt(3)),
        "n": 4,
    }
    assert "relative_bias" not in rows["vcpo"] and "eta_max" in rows["vcpo"]


def test_claims_name_what_is_better_and_what_is_not(summary):
    holds = [claim["holds"] for claim in summary["claims"]]
    assert holds == [True, False, True, True]
    assert summary["claims"][0]["claim"].endswith("S = 32: cispo, token_tis")
    # dr_grpo's gradient is normalized otherwise, so its smaller bias is against another one.
    assert all("token_tis" in claim["claim"] for claim in summary["claims"][2:])
    assert (
        "aipo" in summary["claims"][1]["claim"] and "token_is" not in summary["claims"][1]["claim"]
    )


def test_a_boundary_outside_the_grid_is_half_a_step_outside():
    config = corrections.get_config()
    rates = np.array(config.stability.sweep.learning_rates)
    cells = corrections_summary.of_lag(cell_records(config, {"none": 1.0}), 8, 300)
    records = [r for r in cell_records(config, {"none": 1.0}) if r["method"] == "none"]
    cells = corrections_summary.of_lag(records, 8, 300)
    step = np.diff(np.log(rates)).mean()
    assert corrections_summary.clipped_log_eta_max(cells, rates) == pytest.approx(
        np.log(4e-3) + step / 2
    )


def test_figures_are_drawn_from_the_files(summary, tmp_path):
    write_json(tmp_path / "summary.json", summary)
    assert len(figures.draw_all(tmp_path)) == 3
    assert (tmp_path / "corrections_stability.pdf").stat().st_size > 5_000


def test_the_report_has_a_row_for_each_correction(summary, tmp_path):
    folder = tmp_path / "corrections"
    folder.mkdir()
    write_json(folder / "summary.json", summary)
    write_json(folder / "config.json", corrections.get_config().to_dict())
    figures.draw_all(folder)
    section = report.corrections_section(tmp_path)
    header, *rows = section.table
    assert [row[0] for row in rows] == list(summary["corrections"])
    assert all(len(row) == len(header) for row in rows)
    row = dict(zip(header, next(row for row in rows if row[0] == "vcpo"), strict=True))
    assert row["offset at lag 0"] == "-" and row["eta_max / grpo_clip, S = 32"] == "1 [1, 1]"
    page = report.section_html(section)
    assert page.count("data:image/png") == 3 and "<td>r1_reward_stable_reinforce</td>" in page
    better = "At S = 32 a higher stable learning rate than grpo_clip, beyond the seeds' interval: cispo, token_tis;"
    assert html.escape(better) in page


def test_each_correction_gets_the_surrogate_it_is_defined_with():
    config = corrections_full.get_config()
    methods = corrections_stability.methods(config)
    assert set(methods) == {*CORRECTIONS, "vcpo", "gac", "gac_after_optimizer"}
    assert methods["dr_grpo"].surrogate.length_normalization == "constant"
    assert methods["dr_grpo"].surrogate.normalize_std is False
    assert (
        methods["vcpo"].correction.name == "grpo_clip"
        and methods["vcpo"].correction.update_rule == "vcpo"
    )
    groups = corrections_exact.by_surrogate(config)
    assert sorted(name for names in groups.values() for name in names) == sorted(CORRECTIONS)


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("corrections", ("grpo_clip", "ppo"), "corrections"),
        ("corrections", ("none",), "corrections"),
        ("trained_update_rules", ("adam",), "trained_update_rules"),
        ("num_draws", 1, "num_draws"),
        ("s_eta", (0.5,), "s_eta"),
        ("task.name", "arithmetic", "task.name"),
        ("stability.sweep.seeds", (0, 0), "stability.sweep.seeds"),
    ],
)
def test_contradictions_are_refused_by_flag(flag, value, named):
    config = corrections.get_config()
    config.update_from_flattened_dict({flag: value})
    with pytest.raises(FieldError, match=f"--config.{named}="):
        corrections_config.validate(config)


def test_default_configs_are_accepted():
    corrections_config.validate(corrections.get_config())
    corrections_config.validate(corrections_full.get_config())


@pytest.mark.slow
def test_tiny_run_writes_what_it_promises_and_goes_on(tmp_path):
    command = [
        sys.executable, "-m", "experiments.corrections", f"--workdir={tmp_path}", "--config.num_draws=2",
        "--config.corrections=('grpo_clip','token_tis','r1_reward_stable_reinforce','clip_higher')",
        "--config.trained=('grpo_clip',)", "--config.trained_update_rules=('vcpo',)",
        "--config.variance.num_batches=50", "--config.cost.num_rounds=3",
        "--config.stability.steps=60", "--config.stability.sweep.horizons=(60,)",
        "--config.stability.sweep.max_lags=(8,16)", "--config.stability.sweep.seeds=(0,1)",
        "--config.stability.sweep.learning_rates=(2e-3,8e-3)",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    first = (tmp_path / "summary.json").read_bytes()
    rows = json.loads(first)["corrections"]
    assert rows["grpo_clip"]["offset"]["mean"] == 0 and rows["token_tis"]["offset"]["mean"] < 1e-12
    # Before a token is clipped, GRPO's gradient is that of the importance weights.
    bias = {
        name: rows[name]["relative_bias"]["own"]["0.00195312"]["mean"]
        for name in ("grpo_clip", "token_tis")
    }
    assert bias["grpo_clip"] == pytest.approx(bias["token_tis"], rel=1e-9)
    rounds = [(r["round"], r["method"]) for r in read_jsonl(tmp_path / "cost.jsonl")]
    assert sorted(rounds) == [
        (number, method) for number in range(3) for method in ("grpo_clip", "vcpo")
    ]
    assert 0 < rows["vcpo"]["update_time_ratio"]["median"] < 10
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    (tmp_path / "cells.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    again = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in lines]
    for record in again + expected:
        del record["time_cell"]
    assert again == expected
