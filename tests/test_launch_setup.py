"""launch/setup.sh makes .venv for an accelerator; a false Python shows what it would install."""

import re
import shlex
import shutil
import sys

import pytest

from tests.helpers.machine import ROOT, UV, Machine

ACCELERATORS = ("cuda12", "cuda13", "tpu")
SETUP = "bash launch/setup.sh"
EDITABLE = (
    "python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "
    "--editable ."
)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def stamp(machine):
    return (machine.checkout / ".venv" / "stamp").read_text()


def locks(version, accelerator="cpu"):
    extra = [f"requirements-{accelerator}-py{version}.txt"] if accelerator != "cpu" else []
    return [f"launch/{name}" for name in (f"requirements-py{version}.txt", *extra)]


def installs(version, accelerator="cpu"):
    """Returns the calls that make .venv."""
    flags = " ".join(f"--requirement={lock}" for lock in locks(version, accelerator))
    return [f"python -m pip install --quiet --disable-pip-version-check {flags}", EDITABLE]


@pytest.mark.parametrize(
    "words", ["--accelerator=foo", "--accelerator=", "--accelerator", "--accelerator=tpu x", "tpu"]
)
def test_a_wrong_flag_is_refused_in_one_line(machine, words):
    done = machine.run(f"{SETUP} {words}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(words.split()[-1] + ": ") and "cuda12" in done.stderr
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize("accelerator", ["cpu", *ACCELERATORS])
def test_an_accelerator_has_its_lock_on_top_of_the_common_one_and_is_made_once(
    machine, accelerator
):
    done = machine.run(f"{SETUP} --accelerator={accelerator}")
    assert done.returncode == 0, done.stderr
    assert machine.called() == [
        f"python3 -m venv {machine.checkout}/.venv",
        *installs(311, accelerator),
    ]
    assert stamp(machine).startswith(f"(3, {sys.version_info[1]}) {accelerator} ")
    assert done.stdout == f"{machine.checkout}/.venv is ready for {accelerator}\n"
    again = machine.run(f"{SETUP} --accelerator={accelerator}")
    assert again.stdout == done.stdout and again.stderr == "" and machine.called() == []


def test_the_tests_keep_the_environment_of_an_accelerator_and_remake_it_with_its_lock(machine):
    machine.run(f"{SETUP} --accelerator=cuda12")
    before, _ = stamp(machine), machine.called()
    sourced = 'source "launch/setup_env.sh" -m slow || exit; echo goes on'
    done = machine.run(sourced)
    assert (done.returncode, done.stdout, stamp(machine)) == (0, "goes on\n", before)
    assert machine.called() == []
    with open(machine.checkout / "launch/requirements-cuda12-py311.txt", "a") as lock:
        lock.write("# changed\n")
    assert machine.run(sourced).returncode == 0
    assert machine.called()[1:] == installs(311, "cuda12") and stamp(machine) != before


@pytest.mark.parametrize("other", ["cpu", "cuda13"])
def test_another_accelerator_is_refused_and_nothing_is_touched(machine, other):
    machine.run(f"{SETUP} --accelerator=cuda12")
    before, _ = stamp(machine), machine.called()
    done = machine.run(f"{SETUP} --accelerator={other}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"--accelerator={other}: ") and "is for cuda12" in done.stderr
    assert stamp(machine) == before and machine.called() == []


def test_an_environment_for_the_cpu_is_made_anew_for_an_accelerator_that_is_asked_for(machine):
    machine.run(SETUP)
    # Older environments do not say what they are for.
    (machine.checkout / ".venv/made_by_launch").write_text("")
    leftover = machine.checkout / ".venv" / "leftover"
    leftover.write_text("")
    machine.called()
    assert machine.run(f"{SETUP} --accelerator=tpu").returncode == 0
    assert machine.called()[1:] == installs(311, "tpu") and not leftover.exists()


def test_a_setup_that_was_cut_off_is_done_anew_for_its_accelerator(machine):
    done = machine.run(f"{SETUP} --accelerator=tpu", PIP_STATUS="1")
    assert done.returncode == 1 and "could not be set up" in done.stderr
    assert not (machine.checkout / ".venv/stamp").exists()
    machine.called()
    assert machine.run("source launch/setup_env.sh").returncode == 0
    assert machine.called()[1:] == installs(311, "tpu")


def test_the_environment_of_someone_else_is_left_alone(machine, tmp_path):
    own = machine.checkout / ".venv"
    (own / "bin").mkdir(parents=True)
    done = machine.run(SETUP)
    assert done.returncode == 1 and "was not made by launch/" in done.stderr
    shutil.rmtree(own)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/stamp").write_text("(3, 11) cpu /elsewhere hashes\n")
    own.symlink_to(tmp_path / "other")
    done = machine.run(SETUP)
    assert done.returncode == 1 and "environment of another folder" in done.stderr
    assert (tmp_path / "other/stamp").exists() and machine.called() == []


def test_a_link_to_a_larger_disk_is_filled(machine, tmp_path):
    (tmp_path / "scratch").mkdir()
    (machine.checkout / ".venv").symlink_to(tmp_path / "scratch")
    for accelerator in ("cpu", "cuda12"):
        assert machine.run(f"{SETUP} --accelerator={accelerator}").returncode == 0
    assert (tmp_path / "scratch/stamp").read_text() == stamp(machine)


def test_where_python_is_too_old_uv_brings_one_and_does_so_once(tmp_path):
    machine = Machine(tmp_path, version=310)
    machine.program("uv", UV)
    done = machine.run(f"{SETUP} --accelerator=tpu")
    assert done.returncode == 0, done.stderr
    brought, _, *others = machine.called()
    assert brought == f"uv python install 3.12 into {machine.checkout}/.venv-python"
    assert others == installs(312, "tpu")
    assert machine.run(SETUP).returncode == 0 and machine.called() == []


def test_a_python_that_is_too_old_brings_uv(tmp_path):
    machine = Machine(tmp_path, version=310)
    uv = machine.program("not_uv", UV)
    done = machine.run(f"{SETUP} --accelerator=tpu", UV=str(uv))
    assert done.returncode == 0, done.stderr
    pip, brought, *_ = machine.called()
    assert re.search(r"^python3 -m pip install .* --target \.venv-uv uv==[\d.]+$", pip)
    assert brought.startswith("uv python install 3.12 ")


def test_without_a_python_and_without_uv_a_line_says_what_to_install(tmp_path):
    machine = Machine(tmp_path, version=310)
    done = machine.run(SETUP)
    assert done.returncode == 1
    assert done.stderr.startswith("No Python >= 3.11 with venv and ensurepip found, and no uv")
    assert not (machine.checkout / ".venv").exists()


def pins(path):
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("version", [311, 312])
@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_lock_of_an_accelerator_adds_exact_pins_that_fit_the_pinned_jax(version, accelerator):
    common, extra = (pins(ROOT / lock) for lock in locks(version, accelerator))
    assert not common.keys() & extra.keys()
    if accelerator == "tpu":
        assert extra.keys() == {"libtpu"}
    else:
        plugins = {extra[f"jax-{accelerator}-{part}"] for part in ("plugin", "pjrt")}
        assert plugins == {common["jax"]} and len(extra) > 10


def test_the_steps_of_the_dockerfile_make_the_environment(tmp_path):
    machine = Machine(tmp_path, version=312)
    app = machine.checkout
    shutil.rmtree(app)
    app.mkdir()
    steps = (ROOT / "launch/gke/Dockerfile").read_text().splitlines()
    for keyword, *words in (line.split(maxsplit=1) for line in steps if line):
        match keyword, shlex.split(words[0]) if keyword != "#" else []:
            case "FROM", [image]:
                assert image == "python:3.12-slim"
            case "WORKDIR", [folder]:
                assert folder == "/app"  # as in jobset.yaml
            case "COPY", [*sources, target]:
                for source in sources:
                    if (ROOT / source).is_dir():
                        shutil.copytree(ROOT / source, app / target, dirs_exist_ok=True)
                    else:
                        (app / target).mkdir(exist_ok=True)
                        shutil.copy(ROOT / source, app / target)
            case "RUN", _:
                done = machine.run(words[0], ACCELERATOR="tpu")
                assert done.returncode == 0, done.stderr
            case other, _:
                assert other in ("#", "ARG", "ENV")
    assert machine.called() == [f"python3 -m venv {app}/.venv", *installs(312, "tpu")]
    assert (app / "experiments/configs/arithmetic.py").exists() and stamp(machine)
