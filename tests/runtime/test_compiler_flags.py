"""The compiler's flags are set for CPUs alone, and those of the user stay."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import pytest

from staleness_grpo.runtime import compiler_flags
from staleness_grpo.sweeps.workers import worker_pool
from tests.conftest import ROOT

REDUCE, LEVEL, EMITTER = (f"{name}={value}" for name, (value, _) in compiler_flags.FLAGS.items())


@pytest.fixture
def flags(monkeypatch):
    """Gives a machine without accelerators and flags."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    return monkeypatch


def test_flags_are_added_to_those_of_the_user(flags):
    flags.setenv("XLA_FLAGS", "--xla_dump_to=folder --xla_backend_optimization_level=3")
    assert compiler_flags.prefer_small_programs(is_narrow=True)
    expected = f"--xla_dump_to=folder --xla_backend_optimization_level=3 {REDUCE} {EMITTER}"
    assert os.environ["XLA_FLAGS"] == expected


def test_a_second_call_changes_nothing(flags):
    for _ in range(2):
        assert compiler_flags.prefer_small_programs(is_narrow=True)
        assert os.environ["XLA_FLAGS"] == f"{REDUCE} {LEVEL} {EMITTER}"


def test_a_later_version_gets_the_flags_that_it_knows(flags):
    flags.setattr(importlib.metadata, "version", lambda name: "0.11.0")
    assert compiler_flags.prefer_small_programs(is_narrow=True)
    assert os.environ["XLA_FLAGS"] == f"{REDUCE} {LEVEL}"


def test_a_wide_decoder_keeps_the_newer_emitter(flags):
    assert compiler_flags.prefer_small_programs(is_narrow=False)
    assert os.environ["XLA_FLAGS"] == f"{REDUCE} {LEVEL}"


def test_a_worker_takes_one_flag_back(flags):
    flags.setenv("XLA_FLAGS", "--xla_dump_to=folder")
    compiler_flags.prefer_small_programs(is_narrow=True)
    compiler_flags.prefer_long_runs()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=folder {REDUCE} {LEVEL}"


def test_a_worker_keeps_the_emitter_that_the_user_has_set(flags):
    flags.setenv("XLA_FLAGS", EMITTER)
    compiler_flags.prefer_small_programs(is_narrow=True)
    compiler_flags.prefer_long_runs()
    assert os.environ["XLA_FLAGS"] == f"{EMITTER} {REDUCE} {LEVEL}"


def test_a_worker_of_a_map_has_the_newer_emitter_and_leaves_its_parents_flags(flags):
    compiler_flags.prefer_small_programs(is_narrow=True)
    before = os.environ["XLA_FLAGS"]
    with worker_pool(1) as pool:
        assert pool.submit(os.getenv, "XLA_FLAGS").result(timeout=60) == f"{REDUCE} {LEVEL}"
    assert os.environ["XLA_FLAGS"] == before


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "1.0.0"])
def test_unknown_versions_get_no_flags(flags, version):
    flags.setattr(importlib.metadata, "version", lambda name: version)
    assert not compiler_flags.prefer_small_programs(is_narrow=True)
    assert "XLA_FLAGS" not in os.environ


def test_accelerators_get_no_flags(flags):
    flags.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not compiler_flags.prefer_small_programs(is_narrow=True)
    flags.delenv("JAX_PLATFORMS")
    flags.setattr(importlib.metadata, "entry_points", lambda group: ("jax_cuda12_plugin",))
    assert not compiler_flags.prefer_small_programs(is_narrow=True)
    flags.setattr(importlib.metadata, "entry_points", lambda group: ())
    flags.setattr(importlib.util, "find_spec", lambda name: "libtpu")
    assert not compiler_flags.prefer_small_programs(is_narrow=True)
    assert "XLA_FLAGS" not in os.environ
    flags.setenv("JAX_PLATFORMS", "cpu")  # the plugins are not used
    assert compiler_flags.prefer_small_programs(is_narrow=True)


PROGRAM = """
import os, sys
from staleness_grpo.runtime import compiler_flags
if sys.argv[1] == "set":
    os.environ["JAX_PLATFORMS"] = "cpu"
    assert compiler_flags.prefer_small_programs(is_narrow=True)
import jax, jax.numpy as jnp
norms = jax.jit(lambda x: jnp.sum(x * x, axis=-1))
print("ynn_fusion" in norms.lower(jnp.ones((256, 32))).compile().as_text())
"""


def test_jax_takes_the_flags():
    """Without the flags, XLA gives the sum to YNNPACK where it has this library."""

    def uses_ynnpack(how):
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [sys.executable, "-c", PROGRAM, how]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout.strip() == "True"

    if not uses_ynnpack("leave"):
        pytest.skip("this version of XLA computes the sum without YNNPACK")
    assert not uses_ynnpack("set")


COMMAND = """
import os, sys
from experiments.common import cli
from staleness_grpo.runtime import allocator
called = []
allocator.keep_freed_memory = lambda: called.append(1)

def main(config, workdir):
    import jax, jax.numpy as jnp
    from staleness_grpo.runtime.environment import describe_environment
    norms = jax.jit(lambda x: jnp.sum(x * x, axis=-1))
    used = "ynn_fusion" in norms.lower(jnp.ones((256, 32))).compile().as_text()
    print("found", len(called), used, describe_environment()["xla_flags"])

cli.run(main, cli.draw_nothing, default_config="experiments/configs/arithmetic.py",
        validate=lambda config: None)
"""


@pytest.mark.parametrize(
    ("setting", "keeps_memory"),
    [
        ("d_model=32", 0),
        ("d_model=64", 1),
        ("checkpoint=folder", 1),
        ("name=docs/examples/gru.py:GRU", 1),
    ],
)
def test_a_command_sets_them_before_jax_reads_them_and_records_them(
    tmp_path, setting, keeps_memory
):
    """Only a wide policy's freed memory is kept, because all threads share one arena then."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [
            *(sys.executable, "-c", COMMAND, f"--workdir={tmp_path / 'new'}"),
            f"--config.policy.{setting}",
        ],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found")]
    known = f"{REDUCE} {LEVEL}"
    is_narrow = not keeps_memory
    if is_narrow and importlib.metadata.version("jaxlib").startswith("0.10."):
        known += f" {EMITTER}"
    assert line == f"found {keeps_memory} False {known}"
