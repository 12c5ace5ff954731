"""The line about devices at the start of a run, and JAX_PLATFORMS that cannot be had."""

import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from experiments.common import cli, devices
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.tasks.text import read_problems
from tests.helpers.workdirs import checked_folder


@pytest.fixture
def sixteen_gpus(monkeypatch):
    gpus = [SimpleNamespace(id=number, device_kind="NVIDIA H100") for number in range(16)]
    monkeypatch.setattr(jax, "devices", lambda: gpus)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_processes_devices_and_what_the_mesh_leaves_unused(sixteen_gpus, capsys):
    config = default_config()
    config.mesh.fsdp = 16
    devices.announce(config)
    line = "2 processes, 8 local devices, 16 global devices (NVIDIA H100)"
    assert capsys.readouterr().err == line + "\n"
    config.mesh.update(dict(data=7, fsdp=2))
    devices.announce(config)
    unused = "; 2 of them are not used, by number 14, 15: raise --config.mesh.data, "
    assert capsys.readouterr().err.startswith(line + unused)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_gpu_that_jax_does_not_use_is_named(has_gpu, monkeypatch, capsys):
    monkeypatch.setattr(devices, "_has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    devices.announce(default_config())
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "1 process, 1 local device, 1 global device (cpu)"
    assert [line.startswith("this machine has an NVIDIA GPU") for line in others] == [
        True
    ] * has_gpu
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    devices.announce(default_config())
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("platform", ["cuda", "abacus"])
def test_a_platform_that_jax_lacks_is_one_line(platform, tmp_path):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        command,
        cwd=cli.ROOT,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"JAX_PLATFORMS={platform}: ") and "unset the variable" in line
    assert not (tmp_path / "run").exists()


URLS = ("gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "hf://datasets/x", "gs:/bucket")


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused_at_the_start(url):
    with pytest.raises(FlagError, match=f"^--workdir={url}: URLs cannot be used"):
        checked_folder(url, default_config())
    with pytest.raises(FieldError, match=f"^path={url}: URLs cannot be used"):
        read_problems(url)
    config = default_config()
    config.policy.checkpoint = url
    with pytest.raises(FieldError, match=f"^policy.checkpoint={url}: URLs cannot be used"):
        validation.validate(config, 1)
    config = default_config()
    config.lag.update(dict(schedule="trace", trace=url))
    with pytest.raises(FieldError, match=f"^lag.trace={url}: URLs cannot be used"):
        validation.validate(config, 1)


def test_a_folder_with_a_colon_is_no_url(tmp_path):
    assert checked_folder(f"{tmp_path}/s:3", default_config()) == tmp_path / "s:3"


def test_threads_get_devices_of_their_own():
    """As many as there are threads, at most one for each core, or as many as the user says."""
    program = (
        "import jax, os, sys; from experiments.common import devices;"
        "devices.usable_cores = lambda: [0, 1, 2];"
        "devices.make_for_threads(int(sys.argv[1])); devices.check(); devices.announce({});"
        "print(jax.device_count())"
    )

    def made(num_threads, **variables):
        environment = {name: os.environ[name] for name in os.environ if name[:8] != "JAX_NUM_"}
        done = subprocess.run(
            [sys.executable, "-c", program, str(num_threads)],
            env=environment | {"JAX_PLATFORMS": "cpu"} | variables,
            cwd=cli.ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "not used" not in done.stderr
        return int(done.stdout)

    assert [made(2), made(8), made(2, JAX_NUM_CPU_DEVICES="1")] == [2, 3, 1]


def test_a_process_that_only_starts_others_leaves_the_devices_to_them():
    program = (
        "import jax; from experiments.common import devices;"
        "devices.leave_to_others(None); devices.check(); devices.announce({});"
        "print(jax.config.jax_platforms)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("cpu\n", "")  # nothing is announced of this process


@pytest.mark.parametrize("module", ["experiments.accelerator", "experiments.reproduce.__main__"])
def test_parents_of_other_processes_are_such(module, monkeypatch):
    given = {}
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(cli, "run", lambda *args, **kwargs: given.update(kwargs))
    runpy.run_module(module, run_name="__main__")
    assert given["prepare"] is devices.leave_to_others
