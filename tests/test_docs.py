"""The documentation: pages made from code are up to date, and the built site is whole."""

import os
import re
import subprocess
import sys
import urllib.parse

import pytest
from ml_collections import ConfigDict

from experiments.common import reference_pages
from staleness_grpo.config.defaults import default_config
from tests.helpers import killing

ROOT = killing.ROOT
FIX = "python -m experiments.common.reference_pages"


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_pages_made_from_code_are_up_to_date(name):
    page = reference_pages.PAGES[name]()
    assert (ROOT / "docs" / name).read_text() == page, f"docs/{name} is out of date: run {FIX}"


def test_every_field_of_the_default_config_is_documented_once():
    row = re.compile(r"^\| `([\w.]+)` \| (?:bool|float|int|str)\b", re.MULTILINE)
    documented = row.findall(reference_pages.config_page())
    assert sorted(documented) == sorted(leaves(default_config()))


def leaves(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def commented():
    return ConfigDict(
        dict(
            a=1,  # behind
            # Above, and
            # in two lines.
            b=2,
            section=dict(  # of the section
                c=(
                    3,
                    4,
                ),  # behind the end
                d=5,  # choices: x, y, ...
            ),
        )
    )


def not_commented():
    # fmt: off
    return ConfigDict(
        dict(
            a=1,  # behind
            section=dict(b=2),
        )
    )
    # fmt: on


def test_comments_belong_to_the_field_before_or_below_them():
    assert reference_pages.field_comments(commented) == {
        "a": "behind",
        "b": "Above, and in two lines",
        "section.c": "behind the end",
        "section.d": "choices: x, y, ...",
    }


def test_a_field_without_a_comment_is_refused():
    with pytest.raises(ValueError, match=r"^section\.b has no comment"):
        reference_pages.field_comments(not_commented)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def references(page):
    """Yields what a page of the site loads or links to, unless it only points into itself."""
    yield from re.findall(r'\b(src|href)="([^"#]+)', page.read_text())


def test_every_link_within_the_site_leads_to_a_file(site):
    pages = sorted(site.glob("**/*.html"))
    assert len(pages) > 10
    for page in pages:
        for _, target in references(page):
            if urllib.parse.urlsplit(target).scheme or page.name == "404.html":
                continue
            path = page.parent / urllib.parse.unquote(target)
            assert path.exists(), f"{page.relative_to(site)} links to {target}"


def test_the_site_loads_nothing_from_a_network(site):
    for page in site.glob("**/*.html"):
        text = page.read_text()
        loaded = [target for attribute, target in references(page) if attribute == "src"]
        loaded += re.findall(r'<link [^>]*href="([^"]+)"', text)
        assert not [target for target in loaded if urllib.parse.urlsplit(target).netloc], page


def test_the_site_holds_every_result_that_is_kept(site):
    results = ROOT / "experiments" / "results"
    kept = {path.relative_to(results) for path in results.glob("**/*.json")}
    there = {path.relative_to(site / "results") for path in (site / "results").glob("**/*.json")}
    assert kept and there == kept


def test_links_out_of_docs_are_rewritten_and_code_is_not():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        hooks = pytest.importorskip("hooks", reason="the extra docs is not installed")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    targets = hooks._targets(
        "[a](../README.md#limits) ![b](b.png) `[code](c.md)` [d](https://example.org) [e](#here)\n"
        '\n[f]: ../LICENSE\n\n```text\n[code](g.md)\n```\n<img src="h.png" width="300">\n'
    )
    assert targets == ["../README.md", "b.png", "../LICENSE", "h.png"]
    assert [
        hooks._site_path(hooks._path("docs/findings.md", target))
        for target in (
            "../README.md",
            "../CONTRIBUTING.md",
            "../experiments/bias/README.md",
            "../experiments/results/name/summary.json",
            "words.md",
            "../experiments/configs/bias.py",
        )
    ] == [
        "readme.md",
        "contributing.md",
        "experiments/bias.md",
        "results/name/summary.json",
        "words.md",
        "repository/experiments/configs/bias.py",
    ]
