"""The report: claims from records, intervals of known value, and no picture without its data."""

import json

import numpy as np
import pytest

from experiments import lag_comparison, report
from experiments.figures import style, training


def records(final, num_steps=60, lag=0):
    """A run whose evaluations rise from 0.3 to `final` and stay there from half way."""
    rewards = 0.3 + (final - 0.3) * np.minimum(np.arange(num_steps) / (num_steps / 2), 1)
    evaluated = [{"eval_reward": reward, "gradient_cosine_ceiling": 0.2} for reward in rewards]
    return [
        {
            "step": step,
            "lag_max": min(step, lag),
            "ratio_max": 1.0,
            "ratio_q01": 1.0,
            "drift_from_start": 0.1 * step,
            "drift_from_behavior": 0.1 * min(step, lag),
            "entropy": 0.5,
            "clip_fraction_positive": 0.0,
            "clip_fraction_negative": 0.0,
            "ess": 1.0,
            "gradient_cosine": None if step == 0 else 0.1,
            **(evaluated[step] if step % 5 == 0 else {}),
        }
        for step in range(num_steps)
    ]


def run(final, lag):
    config = {
        "lag": {"max_lag": lag}, "optimizer": {"learning_rate": 2e-3, "name": "adam"}, "steps": 60,
        "num_prompts": 64, "group_size": 8,
    }  # fmt: skip
    return {"config": config, "records": records(final, lag=lag), "summary": {"median_time_step": 0.02}}


def test_wilson_interval():
    # Wilson 1927 by hand for 8 of 10: centre (0.8 + 0.19208) / 1.38416, half 1.96 sqrt(0.016 + 0.009604) / 1.38416
    np.testing.assert_allclose(lag_comparison.rate_interval(0.8, 10), [0.49016, 0.94331], atol=1e-4)
    low, high = lag_comparison.rate_interval(0.0, 100)
    assert low == pytest.approx(0, abs=1e-12) and 0.03 < high < 0.04


def test_facts_follow_the_records():
    facts = lag_comparison.facts(run(0.9, 0), run(0.5, 16), 512)
    by_claim = {fact["claim"]: fact for fact in facts}
    assert [fact["holds"] for fact in facts] == [True] * len(facts)
    cost = by_claim["At this learning rate a lag of 16 costs final pass rate"]
    assert cost["measured"] == pytest.approx(0.4)
    half = 1.96 * np.sqrt(0.9 * 0.1 / 2560 + 0.25 / 2560)
    np.testing.assert_allclose(cost["interval"], [0.4 - half, 0.4 + half])

    other = lag_comparison.facts(run(0.3, 0), run(0.9, 16), 512)  # nothing rises, and lag costs nothing
    assert not other[0]["holds"] and not other[2]["holds"]
    shifted = run(0.5, 16)
    shifted["records"][20]["lag_max"] = 15
    assert not lag_comparison.facts(run(0.9, 0), shifted, 512)[4]["holds"]


def write_run(folder, final, lag):
    folder.mkdir(parents=True)
    written = run(final, lag)
    (folder / "config.json").write_text(json.dumps(written["config"]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in written["records"]))
    (folder / "summary.json").write_text(json.dumps(written["summary"]))


def test_training_section_is_self_contained(tmp_path):
    write_run(tmp_path / "train_lag_0", 0.9, 0)
    write_run(tmp_path / "train_lag_16", 0.5, 16)
    page = report.section_html(report.training_section(tmp_path))
    assert (tmp_path / "training.png").exists() and (tmp_path / "training.pdf").exists()
    assert 'src="data:image/png;base64,' in page and 'src="/' not in page
    assert "0.9 [0.8878, 0.911]" in page and ">yes<" in page


def test_a_gap_in_the_data_is_an_error(tmp_path):
    write_run(tmp_path / "train_lag_0", 0.9, 0)
    with pytest.raises(FileNotFoundError):
        report.training_section(tmp_path)
    broken = records(0.9)
    del broken[30]["entropy"]
    with pytest.raises(KeyError), style.context():
        training.draw({"S = 0": broken})


def test_what_does_not_hold_is_said_as_plainly():
    fact = {"claim": "a < b", "measured": 2.0, "interval": [1.0, 3.0], "n": 4, "holds": False}
    row = '<tr><td>a &lt; b</td>{}<td class="number">2 [1, 3]</td><td>4</td><td class="no">no</td></tr>'
    assert report.fact_row(fact, with_paper=False) == row.format("")
    assert report.fact_row(fact | {"paper": "-1"}, with_paper=True) == row.format("<td>-1</td>")


def test_the_page_has_the_sections_of_its_jobs(tmp_path):
    write_run(tmp_path / "train_lag_0", 0.3, 0)
    write_run(tmp_path / "train_lag_16", 0.9, 16)
    (tmp_path / "environment.json").write_text('{"versions": {"jax": "1"}, "platform": "p", "commit": null}')
    page = report.write(tmp_path, ["train_lag_0", "train_lag_16"]).read_text()
    assert page.count("<h2>") == 1 and "6 claims,\n4 hold" in page
    assert "<li>At this learning rate a lag of 16 costs final pass rate</li>" in page
    with pytest.raises(FileNotFoundError):
        report.write(tmp_path, ["bias", "train_lag_0", "train_lag_16"])
