"""The programs of a learner step: what the compiler says of their memory, and whether a Llama-3.2-1B fits."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments import cli, memory
from experiments.workdir import check_workdir
from staleness_grpo import metrics
from staleness_grpo.config import ConfigError, FlagError

LLAMA_1B = cli.ROOT / "experiments/configs/memory_llama_1b.py"
SMALL = {
    "policy.num_layers": 1, "policy.d_model": 16, "policy.num_heads": 2, "policy.num_kv_heads": 1, "policy.d_ff": 32,
    "policy.head_dim": 8, "benchmark.vocab_size": 64, "benchmark.max_response_length": 8,
    "policy.vocab_chunks": 4, "metrics.paired_every": 1,
}  # fmt: skip


def test_every_program_holds_the_learner_state():
    config = cli.load_config(LLAMA_1B)
    config.update_from_flattened_dict(SMALL)
    memory.validate(config)
    summary = memory.measure(config)
    # Parameters, two moments and the last gradient; the version, and the counters of Adam and of the learning rate.
    assert summary["state_bytes"] == 4 * (4 * summary["num_params"] + 3)
    assert set(summary["programs"]) == {"update", "sampling", "paired_gram"}
    for found in summary["programs"].values():
        assert found["peak_bytes"] > summary["state_bytes"] + found["temporary_bytes"] > summary["state_bytes"]


def test_what_was_measured_on_another_mesh_is_another_result(tmp_path):
    """A training may go on on other devices; what a machine is measured for may not."""
    config = cli.load_config(LLAMA_1B)
    metrics.write_run_files(tmp_path, config)
    config.mesh.fsdp = 4
    assert check_workdir(str(tmp_path), config) == tmp_path
    with pytest.raises(FlagError, match=r"mesh.fsdp is 1 there, 4 here"):
        check_workdir(str(tmp_path), config, mesh_may_differ=False)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_topology_without_its_compiler_is_refused():
    config = cli.load_config(LLAMA_1B)
    config.topology = "v5p:2x2x1"
    with pytest.raises(ConfigError, match=r"--config.topology=v5p:2x2x1: pip install 'jax\[tpu\]'"):
        memory.validate(config)


@pytest.mark.slow
def test_the_1b_shape_with_8_responses_of_1024_tokens_fits_80_gb_for_a_tpu(tmp_path):
    """By the TPU's own compiler, in a process of its own: two minutes."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, whose compiler needs no TPU, is not installed: pip install 'jax[tpu]'")
    command = [sys.executable, "-m", "experiments.memory", f"--workdir={tmp_path}", "--config.topology=v5p:2x2x1"]
    subprocess.run(command, check=True, cwd=cli.ROOT, env=os.environ | {"XLA_FLAGS": ""}, timeout=1200)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["num_params"] == 1_235_814_400  # as the model card counts, embeddings once
    assert summary["state_bytes"] >= 4 * 4 * summary["num_params"]
    assert summary["programs"]["sampling"]["peak_bytes"] < 30e9
    assert summary["state_bytes"] < summary["programs"]["update"]["peak_bytes"] < 80e9
