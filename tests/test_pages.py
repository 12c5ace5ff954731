"""Pages say what the records say: every number, every recorded field, and the README's outline."""

import json
import re

import pytest

from tests.helpers.pages import (
    ROOT,
    agrees,
    bare_numbers,
    described_fields,
    look_up,
    number_links,
)

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
]


def page_name(page):
    return str(page.relative_to(ROOT))


WITH_RECORDS = [page for page in PAGES if number_links(page.read_text())]


@pytest.mark.parametrize("page", WITH_RECORDS, ids=page_name)
def test_every_number_with_a_record_is_that_of_the_record(page):
    for written, path, key in number_links(page.read_text()):
        value = look_up((page.parent / path).resolve(), key)
        assert agrees(written, value), f"{page.name} says {written}, {key} of {path} is {value}"


def test_the_findings_state_no_number_without_its_record():
    page = (ROOT / "docs" / "findings.md").read_text()
    assert len(number_links(page)) > 20
    assert bare_numbers(page) == []


def test_every_record_that_pages_use_has_its_config_and_environment():
    for page in WITH_RECORDS:
        for _, path, _ in number_links(page.read_text()):
            folder = (page.parent / path).resolve().parent
            for name in ("config.json", "environment.json", "summary.json"):
                assert (folder / name).is_file(), f"{folder.name} has no {name}"


@pytest.mark.parametrize(
    ("written", "value", "agree"),
    [
        ("0.997", 0.99712, True),
        ("0.997", 0.99651, True),
        ("0.997", 0.9963, False),
        ("-0.47", -0.4735, True),
        ("0.47", -0.4735, False),
        ("1.2e-3", 0.00123, True),
        ("1.2e-3", 0.00129, False),
        ("384", 384.0, True),
        ("88 %", 87.9, True),
        ("88 %", 0.88, False),
    ],
)
def test_numbers_agree_to_the_digits_that_are_written(written, value, agree):
    assert agrees(written, value) is agree


def test_a_number_is_looked_up_by_claim_by_place_and_through_names_with_dots(tmp_path):
    path = tmp_path / "summary.json"
    claims = [{"name": "x", "interval": [1.0, 2e9]}, {"name": "x.y", "interval": [5.0, 6.0]}]
    record = {"a": {"0.5": [3.0, 4.0]}, "claims": claims}
    path.write_text(json.dumps(record))
    assert look_up(path, "a.0.5.1") == 4.0
    assert look_up(path, "claims.x.interval.1 / 1e9") == 2.0
    assert look_up(path, "a.0.5.0 * 100") == 300.0
    assert look_up(path, "claims.x.y.interval.0") == 5.0
    for key in ("b", "claims.y.interval", "a.0.6"):
        with pytest.raises(KeyError):
            look_up(path, key)


def test_a_number_without_a_record_is_seen():
    assert bare_numbers('slope 0.99, [0.99](../experiments/results/a/summary.json "b")') == ["0.99"]
    assert bare_numbers("S = 16 for 600 steps, `--x=0.1`, arXiv 2607.01083") == []


def test_the_readme_keeps_to_its_outline():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = re.sub(r"^\s*[|#!].*$", "", prose, flags=re.MULTILINE)  # tables, headings, pictures
    prose = re.sub(r"\]\([^)]*\)", "]", prose)  # links
    for sentence in re.split(r"(?<=[.:?!])\s+|\n\s*\n|\n\s*[-*] ", prose):
        assert len(sentence.split()) <= 30, sentence


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)", page.read_text()):
        if not re.match(r"https?:|#", target):
            path = (page.parent / target.partition("#")[0]).resolve()
            assert path.exists(), f"{page.name} links to {target}"


def recorded_by_a_training() -> set[str]:
    """Returns the fields of the records of a training that measures everything."""
    from staleness_grpo import build_run, train
    from staleness_grpo.tasks import components
    from staleness_grpo.training.loop import finish_record
    from tests.helpers.tiny import tiny_config

    every = {"metrics.lags": True, "metrics.paired_every": 1, "eval_every": 1, "lag.max_lag": 1}
    every |= {"reference.kl": 0.1, "heldout.every": 1, "heldout.fraction": 0.3}
    every |= {"guard.mode": "warn"}
    records = list(train(build_run(tiny_config(**every, steps=2))))
    broken = dict.fromkeys(("loss", "grad_norm", "update_norm", "param_norm"), float("nan"))
    # tests/tasks/test_component_records.py has a training that records components.
    parts = {f"reward_{name}" for name in components.NAMES}
    return parts | {name for record in [*records, finish_record({}, broken)] for name in record}


def test_the_metrics_page_has_every_field_of_a_training():
    described = described_fields("metrics.jsonl of `experiments.train`")
    assert described == recorded_by_a_training()
