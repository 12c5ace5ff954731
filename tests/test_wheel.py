"""The wheel: it installs the library alone, and the README's example runs from it."""

import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.helpers import killing

ROOT = killing.ROOT
MARK = "<!-- library example -->"
LIMIT = 180  # seconds for one command


def run(*words, cwd, **variables):
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: setuptools leaves its working files where it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "README.md", "LICENSE", "staleness_grpo", "experiments"):
        (source / name).symlink_to(ROOT / name)
    words = ["-m", "build", "--wheel", "--no-isolation", f"--outdir={source / 'dist'}"]
    run(sys.executable, *words, cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site_packages(wheel, tmp_path_factory):
    """The site-packages of a new environment with the wheel. Its dependencies are this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, system_site_packages=False)
    python = folder / "bin" / "python"
    words = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    run(sys.executable, "-m", "pip", "--python", python, *words, cwd=folder)
    installed = pathlib.Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    # Python reads no .pth files in a folder that such a file adds. So the editable install there
    # stays unseen.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


def library_example():
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^{MARK}\n+```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no Python block behind the line {MARK}"
    return found[1]


def test_the_wheel_holds_the_library_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    (metadata,) = {name for name in top if name.endswith(".dist-info")}
    assert top == {"staleness_grpo", metadata}
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("staleness_grpo/**/*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert f"{metadata}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_example_of_the_readme_runs_and_leaves_the_installation_as_it_is(
    site_packages, tmp_path
):
    before = sorted(site_packages.glob("**/*"))
    python = site_packages.parents[2] / "bin" / "python"
    example = tmp_path / "example.py"
    example.write_text(
        library_example() + "\nimport staleness_grpo\nprint(staleness_grpo.__file__)\n"
    )
    output = run(
        python,
        example,
        cwd=tmp_path,
        PYTHONPATH="",
        PYTHONDONTWRITEBYTECODE="1",  # bytecode may be written, caches of programs may not
        JAX_PLATFORMS="cpu",
    )
    *lines, file = output.splitlines()
    assert pathlib.Path(file).parent == site_packages / "staleness_grpo"
    assert lines  # the example says something
    assert sorted(site_packages.glob("**/*")) == before
    assert list(tmp_path.iterdir()) == [example]
