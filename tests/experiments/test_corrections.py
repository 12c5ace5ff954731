"""Tests of the corrections: analysis of records with known answers, refusals, and one tiny run."""

import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.common import claims as common_claims
from experiments.common import cli
from experiments.configs import corrections, corrections_full
from experiments.corrections import __main__ as command
from experiments.corrections import analysis, claims, figures, stability, surrogates, validation
from experiments.reproduce import report
from experiments.reproduce.corrections_table import corrections_table
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.objective.corrections.registry import CORRECTIONS
from staleness_grpo.runtime.records import plain, read_jsonl, write_json
from tests.conftest import ROOT


def bias_records(config):
    """Returns a relative bias of s_eta, and an offset for aipo.

    The bias of token_tis is half of that, and that of dr_grpo a tenth.
    """
    factors = {"token_tis": 0.5, "dr_grpo": 0.1}
    return [
        {
            "correction": name,
            "path": path,
            "draw": draw,
            "s_eta": s_eta,
            "relative_bias": s_eta * factors.get(name, 1.0) * (1 + 0.01 * draw),
            "cosine": 1 - s_eta,
            "offset": 0.1 if name == "aipo" else 0.0,
        }
        for name in config.corrections
        if CORRECTIONS[name].has_exact_coefficients
        for path in ("synchronous", "own")
        for draw in range(4)
        for s_eta in config.s_eta
    ]


def variance_records(config):
    """Returns variances that differ a lot by draw, and within a draw by a factor of 2."""
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
    """Returns cells that collapse above the method's learning rate."""
    records = []
    for method in (*config.trained, *config.trained_update_rules):
        for lag in config.stability.sweep.max_lags:
            for rate in config.stability.sweep.learning_rates:
                for seed in config.stability.sweep.seeds:
                    edge = boundary.get(method, 1.2e-3) * (1.3 if seed == 3 else 1.0)
                    collapsed = rate > edge
                    records.append(
                        {
                            "method": method,
                            "max_lag": lag,
                            "learning_rate": rate,
                            "seed": seed,
                            "steps": 300,
                            "steps_run": 300,
                            "collapse_step": 100 if collapsed else None,
                            "final": 0.0 if collapsed else 0.8 + rate,
                        }
                    )
    return records


def cost_records(config):
    """Returns times that grow from round to round; token_tis takes half as long again."""
    return [
        {
            "method": name,
            "round": number,
            "time_update": (1 + number) * (1.5 if name == "token_tis" else 1.0),
        }
        for number in range(5)
        for name in config.trained
    ]


def whole_summary(config, cells):
    """Returns what `main` writes to summary.json."""
    summary = analysis.summarize(
        config, bias_records(config), variance_records(config), cost_records(config), cells
    )
    found = common_claims.records(claims.claims(config, summary))
    return plain(summary | {common_claims.KEY: found, "reading": claims.reading(config, summary)})


@pytest.fixture(scope="module")
def summary():
    config = corrections.get_config()
    config.trained = ("grpo_clip", "none", "token_tis", "cispo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "RESAMPLES", 10)
        cells = cell_records(config, {"token_tis": 2.4e-3, "cispo": 2.4e-3, "none": 1.2e-3})
        return whole_summary(config, cells)


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
    # The highest learning rate at which all seeds are stable.
    assert rows["grpo_clip"]["best_reward"]["32"]["learning_rate"] == 1e-3
    assert rows["cispo"]["best_reward"]["32"]["learning_rate"] == 2e-3
    ratio = rows["token_tis"]["eta_max_over_baseline"]["32"]
    assert ratio["ratio"] == pytest.approx(2.0, rel=0.2) and ratio["interval"][0] > 1
    low, high = rows["none"]["eta_max_over_baseline"]["32"]["interval"]
    assert low == high == 1.0  # the same cells, resampled together
    assert (
        rows["none"]["final_reward"]["8"]["mean"] == rows["grpo_clip"]["final_reward"]["8"]["mean"]
    )
    assert "relative_bias" not in rows["r1_reward_stable_reinforce"]  # reads the size of A
    # grpo_clip and none share their bias and boundary. Of the two that are more stable, token_tis
    # is less biased.
    assert summary["bias_and_stability"]["32"] == {
        "spearman": pytest.approx(-1 / np.sqrt(3)),
        "n": 4,
    }
    assert "relative_bias" not in rows["vcpo"] and "eta_max" in rows["vcpo"]


def test_findings_name_what_is_better_and_what_is_not(summary):
    stable, lag_0, before, after = found = common_claims.read(summary)
    assert [claim.holds for claim in found] == [None] * 4  # nobody published a prediction
    assert [claim.paper for claim in found] == [""] * 4
    assert stable.claim.endswith(": cispo, token_tis") and "At S = 32" in stable.claim
    # Of none, token_tis, cispo, vcpo and gac two are more stable. With the baseline 6 are trained.
    assert stable.measured == 2 and "of 5 methods" in stable.claim
    assert (stable.n, stable.unit) == (4, "seeds") and stable.note.startswith(f"{6 * 6 * 4} cells")
    assert lag_0.claim.endswith(": aipo") and f"of {len(CORRECTIONS) - 2} " in lag_0.claim
    assert lag_0.measured == len(CORRECTIONS) - 3  # aipo, and two without exact coefficients
    # The gradient of dr_grpo is normalized otherwise, so its smaller bias is against another one.
    for claim, s_eta in ((before, 2.0**-7), (after, 2.0**-3)):
        assert "token_tis has the least relative bias" in claim.claim
        assert claim.measured == pytest.approx(0.5 * s_eta * 1.015)
        assert "the intervals do not overlap" in claim.note
        assert (claim.n, claim.unit) == (4, "problems")


def test_the_reading_ranks_by_intervals(summary):
    reading = summary["reading"]
    assert "all whose interval meets the best's): token_tis." in reading
    assert "interval: cispo, token_tis; a lower one: none." in reading
    assert "dr_grpo" in reading.split("Not ranked with them")[1].split(".")[0]


def test_a_boundary_outside_the_grid_is_half_a_step_outside():
    config = corrections.get_config()
    rates = np.array(config.stability.sweep.learning_rates)
    records = [r for r in cell_records(config, {"none": 1.0}) if r["method"] == "none"]
    cells = analysis.cells_at_lag(records, 8, 300)
    step = np.diff(np.log(rates)).mean()
    assert analysis.clipped_log_eta_max(cells, rates) == pytest.approx(np.log(4e-3) + step / 2)


def test_figures_are_drawn_from_the_files(summary, tmp_path):
    write_json(tmp_path / "summary.json", summary)
    assert len(figures.draw(tmp_path)) == 3
    assert (tmp_path / "corrections_stability.png").stat().st_size > 5_000


def test_a_second_call_on_a_finished_folder_draws_from_the_records_alone(summary, tmp_path, capsys):
    def measure_again(config, workdir):
        raise AssertionError("a finished folder is not measured again")

    write_json(tmp_path / "summary.json", summary)
    cli.complete(measure_again, command.draw, corrections.get_config(), tmp_path)
    first, *paths = capsys.readouterr().out.splitlines()
    assert first.endswith("finished already; its figures are drawn again from its records")
    assert len(paths) == 3 + 1 and str(tmp_path / "summary.json") in paths


def test_the_report_has_a_row_for_each_correction(summary, tmp_path):
    folder = tmp_path / "corrections"
    folder.mkdir()
    config = corrections.get_config().to_dict()
    write_json(folder / "summary.json", summary)
    write_json(folder / "config.json", config)
    figures.draw(folder)
    header, *rows = [
        re.findall("<t[hd]>(.*?)</t[hd]>", row)
        for row in re.findall("<tr>(.*?)</tr>", corrections_table(plain(config), summary))
    ]
    assert [row[0] for row in rows] == list(summary["corrections"])
    assert all(len(row) == len(header) for row in rows)
    row = dict(zip(header, next(row for row in rows if row[0] == "vcpo"), strict=True))
    assert row["offset at lag 0"] == "-" and row["eta_max / grpo_clip, S = 32"] == "1 [1, 1]"
    environment = {"versions": {}, "platform": "here", "commit": None}
    write_json(tmp_path / "environment.json", environment)
    jobs = {"corrections": ["experiments.corrections"]}
    path, _ = report.write(tmp_path, {"jobs": jobs, "contrast": {}})
    page = path.read_text()
    assert page.count("data:image/png") == 3 and "<td>r1_reward_stable_reinforce</td>" in page
    better = "At S = 32 a higher stable learning rate than grpo_clip, beyond the seeds' interval: "
    assert html.escape(f"{better}cispo, token_tis;") in page


def test_each_correction_gets_the_surrogate_it_is_defined_with():
    config = corrections_full.get_config()
    methods = stability.sweep_configs(config)
    assert set(methods) == {*CORRECTIONS, "vcpo", "gac", "gac_after_optimizer"}
    assert methods["dr_grpo"].surrogate.length_normalization == "constant"
    assert methods["dr_grpo"].surrogate.normalize_std is False
    assert (
        methods["vcpo"].correction.name == "grpo_clip"
        and methods["vcpo"].correction.update_rule == "vcpo"
    )
    groups = surrogates.by_surrogate(config)
    assert sorted(name for names in groups.values() for name in names) == sorted(CORRECTIONS)


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("corrections", ("grpo_clip", "ppo"), "corrections"),
        ("corrections", ("none",), "corrections"),
        ("trained_update_rules", ("adam",), "trained_update_rules"),
        ("num_draws", 1, "num_draws"),
        ("s_eta", (0.5,), "s_eta"),
        ("s_eta", (2.0**-7, 2.0**-3, 2.0**-3), "s_eta"),
        ("corrections", ("grpo_clip", "none", "none"), "corrections"),
        ("task.name", "arithmetic", "task.name"),
        ("stability.sweep.seeds", (0, 0), "stability.sweep.seeds"),
    ],
)
def test_contradictions_are_refused_by_field(flag, value, named):
    config = corrections.get_config()
    config.update_from_flattened_dict({flag: value})
    with pytest.raises(FieldError, match=f"^{named}=") as refused:
        validation.validate(config)
    assert str(FlagError.of_field(refused.value)).startswith(f"--config.{named}=")


def test_default_configs_are_accepted():
    validation.validate(corrections.get_config())
    validation.validate(corrections_full.get_config())


@pytest.mark.slow
def test_tiny_run_writes_what_it_promises_and_goes_on(tmp_path):
    overrides = [
        "num_draws=2",
        "corrections=('grpo_clip','token_tis','r1_reward_stable_reinforce','clip_higher')",
        "trained=('grpo_clip',)",
        "trained_update_rules=('vcpo',)",
        "variance.num_batches=50",
        "cost.num_rounds=3",
        "stability.steps=60",
        "stability.sweep.horizons=(60,)",
        "stability.sweep.max_lags=(8,16)",
        "stability.sweep.seeds=(0,1)",
        "stability.sweep.learning_rates=(2e-3,8e-3)",
    ]
    flags = [f"--workdir={tmp_path}", *(f"--config.{override}" for override in overrides)]
    words = [sys.executable, "-m", "experiments.corrections", *flags]
    subprocess.run(words, cwd=ROOT, check=True, timeout=600)
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
    (tmp_path / "summary.json").unlink()
    subprocess.run(words, cwd=ROOT, check=True, timeout=600)
    again = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in lines]
    for record in again + expected:
        del record["time_cell"]
    assert again == expected
