"""The public names are there, documented, and cost nothing until they are used."""

import pathlib
import re
import subprocess
import sys

import pytest

import staleness_grpo

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", staleness_grpo.__all__)
def test_a_public_name_is_there_and_documented(name):
    value = getattr(staleness_grpo, name)
    assert value.__doc__
    # A class stands where it is said to stand, so that type checkers and readers find the same one.
    assert value.__module__ == f"staleness_grpo.{staleness_grpo._MODULES[name]}"


def test_the_list_of_names_is_the_map_of_modules():
    assert sorted(staleness_grpo._MODULES) == staleness_grpo.__all__


def test_the_api_page_has_every_public_name_and_no_other():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^## `(\w+)", page, re.MULTILINE)) == staleness_grpo.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'gradient'"):
        staleness_grpo.gradient  # noqa: B018  # the access is what is tested


def test_importing_the_package_imports_no_jax():
    code = "import sys, staleness_grpo, staleness_grpo.tasks; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
