"""The memory report: what the compiler says of a step's programs, and whether a 1B model fits."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments.common import cli
from experiments.common.flag_parsing import load_config
from experiments.common.workdir import write_run_files
from experiments.performance import memory
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime import mesh as mesh_lib
from staleness_grpo.training.loop import train
from staleness_grpo.training.rollouts import Generator
from tests.helpers.tiny import tiny_config
from tests.helpers.workdirs import checked_folder

LLAMA_1B = cli.ROOT / "experiments/configs/memory_llama_1b.py"
SMALL = {
    "policy.num_layers": 1,
    "policy.d_model": 16,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.head_dim": 8,
    "policy.d_ff": 32,
    "policy.vocab_chunks": 4,
    "num_prompts": 4,
    "benchmark.vocab_size": 64,
    "benchmark.prompt_length": 16,
    "benchmark.max_response_length": 8,
}
COMPARED = {"metrics.paired_every": 1}
SEVERAL_UPDATES = {"updates_per_batch": 2, "lag.max_lag": 3, "metrics.parameter_drift": True}


def small(**fields):
    config = load_config(LLAMA_1B)
    config.update_from_flattened_dict(SMALL | fields)
    return config


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        pytest.param(
            COMPARED,
            {"update": 0, "sampling": 0, "paired_gram": 0},
            id="compared",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SEVERAL_UPDATES,
            {"update": 4, "sampling": 4, "proximal_logprobs": 4},
            id="several_updates",
        ),
    ],
)
def test_every_program_holds_the_learner_state_and_the_copies_of_parameters(fields, copies):
    config = small(**fields)
    memory.validate(config)
    summary = memory.measure(config)
    # Parameters, two moments and the last gradient; the version, and the counters of Adam and of
    # the learning rate.
    assert summary["state_bytes"] == 4 * (4 * summary["num_params"] + 3)
    assert set(summary["programs"]) == set(copies)
    copy = 4 * summary["num_params"]
    for name, program in summary["programs"].items():
        assert program["temporary_bytes"] > 0
        lasting = program["peak_bytes"] - program["temporary_bytes"] - program["code_bytes"]
        batch_and_results = lasting - summary["state_bytes"] - copies[name] * copy
        # They are smaller than a copy, so there is no other number of copies.
        assert 0 < batch_and_results < copy, name


def test_an_update_is_of_its_minibatch():
    """It takes 2 of 4 groups, with log-probabilities of the behavior and the proximal policy."""
    config = small(**SEVERAL_UPDATES, **{"correction.name": "decoupled_ppo"})
    state, lowered = memory.lowered_programs(config, mesh_lib.make_mesh())
    groups, responses, prompt, length = 2, 4, 16, 8
    # Bytes of tokens, masks, two kinds of log-probabilities, and rewards.
    batch = groups * (prompt * (4 + 1) + responses * (length * (4 + 1 + 4 + 4) + 4))
    arguments = lowered["update"].compile().memory_analysis().argument_size_in_bytes
    assert arguments == memory.bytes_per_device(state) + batch


@pytest.mark.parametrize(
    "fields",
    [
        {"lag.max_lag": 0},
        {"lag.max_lag": 3},
        {"lag.max_lag": 5},
        {"lag.max_lag": 3, "updates_per_batch": 2},
        {"lag.max_lag": 3, "metrics.parameter_drift": False},
        {"lag.max_lag": 3, "lag.schedule": "cyclic"},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_copies_of_parameters_are_those_that_a_training_keeps(fields, monkeypatch):
    config = tiny_config(steps=9, **fields)
    run = build_run(config)
    kept = {"sampling": 0, "update": 0}

    def counted(name, function):
        def call(*args):
            copies = 0 if run.drift is None else 1 + len(run.drift.versions)
            kept[name] = max(kept[name], copies + (run.proximal_params is not None))
            return function(*args)

        return call

    run.update = counted("update", run.update)
    monkeypatch.setattr(Generator, "sample", counted("sampling", Generator.sample))
    list(train(run))
    copies = memory.parameter_copies(config)
    assert {name: copies[name] for name in kept} == kept


def test_what_was_measured_on_another_mesh_is_another_result(tmp_path):
    """A training may go on on other devices, but a measurement is of one mesh."""
    config = load_config(LLAMA_1B)
    write_run_files(tmp_path, config)
    config.mesh.fsdp = 4
    assert checked_folder(str(tmp_path), config) == tmp_path
    with pytest.raises(FlagError, match=r"mesh.fsdp is 1 in the folder, 4 in this call"):
        checked_folder(str(tmp_path), config, mesh_may_differ=False)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_topology_without_its_compiler_is_refused():
    config = load_config(LLAMA_1B)
    config.topology = "v5p:2x2x1"
    with pytest.raises(FieldError, match=r"^topology=v5p:2x2x1: pip install 'jax\[tpu\]'"):
        memory.validate(config)


def compiled_for_a_tpu(workdir, **flags):
    """Returns summary.json by the TPU's own compiler, which runs in a process of its own."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, whose compiler needs no TPU, is not installed: pip install 'jax[tpu]'")
    command = [sys.executable, "-m", "experiments.memory"]
    command += [f"--workdir={workdir}", "--config.topology=v5p:2x2x1"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    subprocess.run(
        command, check=True, cwd=cli.ROOT, env=os.environ | {"XLA_FLAGS": ""}, timeout=1200
    )
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_splash_attention_compiles_for_four_chips_and_keeps_no_weights(tmp_path):
    """Takes a minute. The compiler splits no kernel, so each chip must call it for its own part."""
    flags: dict[str, object] = SMALL | {
        "num_prompts": 4,
        "benchmark.max_response_length": 1024,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "policy.num_heads": 8,
        "policy.num_kv_heads": 2,
        "policy.remat": "none",
    }
    temporary = {}
    for attention in ("xla", "splash"):
        summary = compiled_for_a_tpu(
            tmp_path / attention, **flags, **{"policy.attention": attention}
        )
        assert summary["num_devices"] == 4
        temporary[attention] = summary["programs"]["update"]["temporary_bytes"]
    # The unmasked half, in bfloat16, of the attention weights of a chip: 2 prompts with 4 responses
    # and 4 heads.
    weights = 2 * 4 * 4 * 1024 * 1024 // 2 * 2
    assert temporary["splash"] < temporary["xla"] - weights


@pytest.mark.slow
def test_the_1b_shape_with_8_responses_of_1024_tokens_fits_80_gb_for_a_tpu(tmp_path):
    """Takes two minutes."""
    summary = compiled_for_a_tpu(tmp_path)
    assert summary["num_params"] == 1_235_814_400  # as the model card counts, embeddings once
    assert summary["state_bytes"] >= 4 * 4 * summary["num_params"]
    assert summary["programs"]["sampling"]["peak_bytes"] < 30e9
    assert summary["state_bytes"] < summary["programs"]["update"]["peak_bytes"] < 80e9
