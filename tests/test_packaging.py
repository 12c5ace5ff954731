"""The package's metadata: one version everywhere, and dependencies that are declared and used."""

import ast
import re
import runpy
import subprocess
import sys

import pytest
import setuptools
import yaml

import staleness_grpo
from tests.helpers import killing

ROOT = killing.ROOT
PACKAGE = ROOT / "staleness_grpo"
# Packages whose module has another name.
MODULES = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pyyaml": "yaml",
}


@pytest.fixture(scope="module")
def metadata():
    """The arguments that setup.py gives to setuptools."""
    collected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", collected.update)
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return collected


def modules(requirements):
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(folder):
    """Returns the top-level modules outside the standard library that a folder's files import."""
    names = set()
    for path in (ROOT / folder).glob("**/*.py"):
        if path.parent.name == "peers":  # its scripts run in environments of their own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def test_code_metadata_citation_and_changelog_have_one_version(metadata):
    version = staleness_grpo.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\d\S*)", changelog, re.MULTILINE)[1]
    assert (metadata["version"], citation["version"], newest) == (version,) * 3


def test_metadata_and_citation_have_one_license_and_paper(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == metadata["license_expression"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert [paper["url"] for paper in citation["references"]] == [metadata["project_urls"]["Paper"]]


def test_dependencies_are_those_that_the_package_imports(metadata):
    extras = metadata["extras_require"]
    optional = modules(extras["hf"] + extras["tasks"] + extras["sinks"])
    required = modules(metadata["install_requires"])
    assert not required & optional
    assert imported("staleness_grpo") == required | optional | {"staleness_grpo"}


def test_the_extra_experiments_is_what_they_import_besides(metadata):
    required = modules(metadata["install_requires"]) | {"staleness_grpo", "experiments"}
    extra = modules(metadata["extras_require"]["experiments"])
    assert imported("experiments") - required == extra


def test_packages_are_those_of_the_library(metadata):
    expected = {path.parent for path in (ROOT / "staleness_grpo").glob("**/__init__.py")}
    folders = {path.parent for path in (ROOT / "staleness_grpo").glob("**/*.py")}
    assert folders == expected  # a folder without __init__.py would be left out of the wheel
    assert set(metadata["packages"]) == {
        ".".join(folder.relative_to(ROOT).parts) for folder in expected
    }


@pytest.mark.parametrize("name", ["requirements-py311.txt", "requirements-py312.txt"])
def test_locks_pin_every_dependency_exactly(metadata, name):
    lines = (ROOT / "launch" / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins)
    locked = {package for package, _ in pins}
    wanted = list(metadata["install_requires"])
    for extra in ("hf", "experiments", "test", "docs"):
        wanted += metadata["extras_require"][extra]
    assert {re.match(r"[\w.-]+", requirement)[0] for requirement in wanted} <= locked
    assert len(locked) == len(pins)


def test_checks_before_a_commit_and_on_a_push_are_those_of_ci():
    script = (ROOT / ".ci/run").read_text()
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"  # nothing is fetched
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].removesuffix(" --force-exclude") in script
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python-version"] == ["3.11", "3.12"]
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_the_changelog_names_modules_that_are_there():
    changelog = (ROOT / "CHANGELOG.md").read_text().partition("### Modules that moved")[2]
    rows = re.findall(r"^\| (`.+`) \| (`.+`) \|$", changelog, re.MULTILINE)
    assert rows
    for old, new in rows:
        for name in re.findall(r"`([\w.]+)`", new):
            top = ROOT if name.startswith(("staleness_grpo.", "experiments.")) else PACKAGE
            path = top / name.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), (old, new)
