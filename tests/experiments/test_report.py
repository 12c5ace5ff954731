"""The report: verdicts and numbers from records, at every stage, and nothing drawn without data."""

import json
import re

import numpy as np
import pytest

from experiments.common import claims as claims_lib
from experiments.common import cli, html
from experiments.common.claims import Claim
from experiments.common.flag_parsing import load_config
from experiments.reproduce import __main__ as reproduce
from experiments.reproduce import contrast, report
from experiments.reproduce.paper import PAPER_CLAIMS
from staleness_grpo.errors import FieldError

CONFIG = {
    "jobs": {"bias": ["experiments.bias"], "scaling_laws": ["experiments.sweep"]},
    "contrast": {"max_lag": 16, "learning_rate": 2e-3},
}
ENVIRONMENT = {"versions": {"jax": "0"}, "platform": "here", "commit": "abc"}


def claim(name, holds=True, measured=1.0, **fields):
    given = dict(claim=f"Sentence on {name}", interval=[0.5, 1.5], n=8, unit="problems")
    return Claim(name=name, measured=measured, holds=holds, **(given | fields))


def cell(lag, seed, final, learning_rate=2e-3, every=5, steps=30):
    rewards = np.linspace(0.3, final, steps // every)
    traces = {name: rewards.tolist() for name in contrast.PANELS}
    return {
        "max_lag": lag,
        "learning_rate": learning_rate,
        "seed": seed,
        "first": 0.3,
        "final": final,
        "collapse_step": 20 if final < 0.15 else None,
        "trace_every": every,
        "traces": traces,
    }


def write_job(folder, claims, cells=(), **summary):
    folder.mkdir(parents=True, exist_ok=True)
    summary = summary | {"claims": claims_lib.records(claims)}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "cells.jsonl").write_text("".join(json.dumps(record) + "\n" for record in cells))


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return tmp_path


def every_claim(job, failing=()):
    names = [
        name
        for stated in PAPER_CLAIMS
        if stated.job == job
        for name in (*stated.evidence, *stated.beside)
    ]
    return [claim(name, holds=name not in failing) for name in dict.fromkeys(names)]


def page_of(workdir, running=None):
    path, found = report.write(workdir, CONFIG, running)
    return path.read_text(), found


def test_before_any_job_every_claim_is_open_and_the_page_is_there(workdir):
    page, found = page_of(workdir, running="bias")
    assert found == []
    assert page.count('class="badge open"') == 2 * len(PAPER_CLAIMS)
    assert "0 of 2 jobs are finished; bias is running" in page


def test_verdicts_follow_the_claims_of_the_finished_jobs(workdir):
    write_job(workdir / "bias", every_claim("bias", failing={"adam_constant_slope"}))
    page, found = page_of(workdir, running="scaling_laws")
    verdicts = [stated.verdict(report_claims(found, stated.job)) for stated in PAPER_CLAIMS]
    assert verdicts == ["holds", "part", "open", "open", "open"]
    summary = page[: page.index("<nav>")]
    shown = re.findall(r'class="badge (\w+)"', summary)
    assert shown == verdicts
    assert "The exponent of S eta is 1 [0.5, 1.5] with SGD" in summary


def report_claims(found, job):
    prefix = f"{job}."
    return {c.name.removeprefix(prefix): c for c in found if c.name.startswith(prefix)}


def test_a_finding_has_no_verdict_and_a_refuted_claim_has_one():
    rows = html.claims_table([claim("finding", holds=None), claim("refuted", holds=False)])
    assert rows.count("does not hold") == 1 and "holds<" not in rows
    assert html.claims_table([]) == ""


def test_words_from_records_cannot_break_the_page():
    assert "<script>" not in html.claims_table([claim("x", claim="<script>", note="a < b")])


def test_the_pair_differs_in_lag_alone_and_its_numbers_are_those_of_the_seeds(workdir):
    seeds = range(6)
    finals = [0.9, 0.88, 0.86, 0.87, 0.89, 0.91]
    cells = [cell(0, s, finals[s]) for s in seeds] + [cell(16, s, 0.02 * s) for s in seeds]
    cells += [cell(16, s, 0.5, learning_rate=1e-3) for s in seeds]  # another learning rate
    write_job(workdir / "scaling_laws", [], cells)
    pair = contrast.pair_of_lags(workdir / "scaling_laws" / "cells.jsonl", 16, 2e-3)
    by_name = {c.name: c for c in contrast.claims(pair, 2e-3, "command")}
    lost = by_name["lag_costs_reward"]
    differences = np.array(finals) - 0.02 * np.arange(6)
    assert lost.measured == pytest.approx(differences.mean())
    assert differences.min() <= lost.interval[0] < lost.measured < lost.interval[1]
    assert lost.interval[1] <= differences.max() and lost.holds and lost.n == 6
    assert by_name["lag_makes_runs_collapse"].measured == [0, 6]
    page, found = page_of(workdir)
    assert (workdir / "contrast.png").exists() and "data:image/png;base64," in page
    assert "contrast.lag_costs_reward" in {c.name for c in found}


def test_equal_outcomes_are_no_cost_of_lag(workdir):
    cells = [cell(lag, s, 0.5 + 0.01 * s) for lag in (0, 16) for s in range(6)]
    write_job(workdir / "scaling_laws", [], cells)
    pair = contrast.pair_of_lags(workdir / "scaling_laws" / "cells.jsonl", 16, 2e-3)
    by_name = {c.name: c for c in contrast.claims(pair, 2e-3, "command")}
    assert by_name["lag_costs_reward"].measured == 0 and not by_name["lag_costs_reward"].holds
    assert not by_name["lag_makes_runs_collapse"].holds


@pytest.mark.parametrize("lags", [(0,), (16,), ()])
def test_a_map_without_the_pair_says_so(workdir, lags):
    write_job(workdir / "scaling_laws", [], [cell(lag, 0, 0.5) for lag in lags])
    page, _ = page_of(workdir)
    assert "has no pairs of cells at lags 0 and 16" in page


def test_a_record_with_a_gap_is_an_error(workdir):
    cells = [cell(lag, s, 0.5) for lag in (0, 16) for s in range(2)]
    del cells[0]["traces"]["entropy"]
    write_job(workdir / "scaling_laws", [], cells)
    with pytest.raises(KeyError, match="entropy"):
        report.write(workdir, CONFIG)


def test_a_figure_that_a_job_left_out_is_named_with_the_reason(workdir):
    reason = "scaling_eta_max: two lags are too few for a fit."
    others = ["scaling_cyclic_eta_max: of a map that this page does not show"]
    left_out = [reason, *others]
    write_job(workdir / "scaling_laws", every_claim("scaling_laws"), figures_left_out=left_out)
    page = page_of(workdir)[0]
    assert html.text(reason) in page and "cyclic_eta_max" not in page


def test_two_claims_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two claims have the same name"):
        claims_lib.records([claim("a"), claim("a")])


def test_claims_survive_their_file():
    claims = [claim("a", paper="-1", note="a note"), claim("b", holds=None, interval=None)]
    assert claims_lib.read({"claims": json.loads(json.dumps(claims_lib.records(claims)))}) == claims


def test_the_page_is_for_a_phone_too_and_needs_nothing_else(workdir):
    write_job(workdir / "bias", every_claim("bias"))
    page, _ = page_of(workdir)
    assert '<meta name="viewport" content="width=device-width' in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_each_job_is_one_command():
    words = reproduce.command(("experiments.train", "--config.steps=3"), "DIR")
    assert words == ["-m", "experiments.train", "--workdir=DIR", "--config.steps=3"]


def test_another_map_has_a_section_with_what_its_summary_has(workdir):
    jobs = CONFIG["jobs"] | {"stories": ["experiments.sweep", "--config=x.py"]}
    config = CONFIG | {"jobs": jobs}
    path, _ = report.write(workdir, config)
    assert 'id="map-stories"' in (page := path.read_text()) and "Not measured yet." in page
    edges = {"low": 1e-4, "high": 4e-3}
    none = {"low": None, "high": None, "low_is": "no usable rate", "high_is": "no usable rate"}
    bias = [{"max_lag": 4, "relative_bias": bias} for bias in (0.5, 1.25, None)]
    summary = {
        "num_cells": 12,
        "num_seeds": 3,
        "outcomes": {"learned": 7, "collapsed": 5},
        "horizons": [100, 200],
        "usable": {"by_lag": {"4": edges, "32": none}, "slope": -0.57, "slope_interval": [-1, 0]},
        "eta_max": {"4": 0.0055},
        "alarms": {"entropy": {"found": 0.41, "n": 27, "false_alarms": 0.09}},
        "scale_free_ratio": 18.65,
        "paired_bias": {"by_cell": bias},
    }
    write_job(workdir / "stories", [], **summary)
    page = report.write(workdir, config)[0].read_text()
    assert "12 trainings, seeds: 3. Outcomes: 7 learned, 5 collapsed." in page
    row = "<td>4</td><td>0.0001</td><td>0.004</td><td>0.0055</td><td>0.5 to 1.25</td>"
    assert row in page
    assert "<td>32</td><td>no usable rate</td><td>no usable rate</td><td>-</td><td>-</td>" in page
    assert "41 % of 27, 9 % false" in page and "18.6" in page and "-0.57" in page


def test_a_job_that_needs_a_model_gets_the_folder_and_is_refused_without_it(tmp_path):
    config = load_config(cli.ROOT / "experiments" / "configs" / "reproduce_stories.py")
    with pytest.raises(FieldError, match="folder of the model") as error:
        reproduce.validate(config)
    assert error.value.field == "checkpoint"
    config.checkpoint = str(tmp_path)
    reproduce.validate(config)
    words = reproduce.command(config.jobs.stories260k, tmp_path / "job", config.checkpoint)
    assert f"--config.policy.checkpoint={tmp_path}" in words
