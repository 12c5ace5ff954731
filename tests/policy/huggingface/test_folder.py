"""Saves and loads model folders: several files, several types, several devices."""

import dataclasses
import errno
import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.huggingface import layout, weights
from staleness_grpo.policy.huggingface.config import read_config
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.types import Prompts
from tests.policy.examples import random_params
from tests.policy.huggingface.checkpoints import SMALL, write_checkpoint

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            weights.write_tensors(
                {"weight": np.zeros(1000, np.float32)}, tmp_path / "model.safetensors"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(
        tmp_path / "model.safetensors"
    )


def test_several_files_bfloat16_and_either_spelling_of_rope(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 1000)
    params = write_checkpoint(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    policy, loaded = huggingface.load(tmp_path)
    assert policy.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

    fields = json.loads((tmp_path / "config.json").read_text())
    fields["rope_parameters"] = fields.pop("rope_scaling") | {
        "rope_theta": fields.pop("rope_theta")
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path, dtype="float32") == SMALL

    policy, loaded = huggingface.load(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert policy.config.dtype == "bfloat16"
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), loaded, params
    )
    huggingface.save(tmp_path / "half", policy, loaded)
    again = huggingface.load(tmp_path / "half", param_dtype="bfloat16")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, again)


def test_saved_over_older_weights_the_new_ones_load(tmp_path, monkeypatch):
    """Saves one file over several, several over one, and into the folder that is the source."""
    policy = Policy(SMALL)
    old, new = (random_params(policy, seed) for seed in (0, 1))
    for first, second in ((1e9, 1000), (1000, 1e9)):
        monkeypatch.setattr(weights, "SHARD_BYTES", first)
        huggingface.save(tmp_path, policy, old)
        monkeypatch.setattr(weights, "SHARD_BYTES", second)
        huggingface.save(tmp_path, policy, new, source=tmp_path)
        jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path)[1], new)


def test_a_stored_copy_of_tied_embeddings_is_accepted(tmp_path):
    params = write_checkpoint(tmp_path / "untied")
    tensors = safetensors.load_file(tmp_path / "untied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    shutil.copytree(tmp_path / "untied", tmp_path / "tied")
    safetensors.save_file(tensors, tmp_path / "tied" / "model.safetensors")
    fields = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "tied" / "config.json").write_text(
        json.dumps(fields | {"tie_word_embeddings": True})
    )
    _, loaded = huggingface.load(tmp_path / "tied")
    assert "head" not in loaded
    np.testing.assert_array_equal(loaded["embedding"], params["embedding"])


@pytest.mark.slow
def test_read_into_its_sharding_and_sampled_there(run_on_devices, tmp_path):
    write_checkpoint(tmp_path)
    write_checkpoint(
        tmp_path / "tied", dataclasses.replace(SMALL, tie_embeddings=True, qkv_bias=True)
    )
    printed = run_on_devices("load_on_mesh", tmp_path, tmp_path / "tied")
    sharded = json.loads(printed.splitlines()[-1])
    policy, params = huggingface.load(tmp_path)
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3)
    indices = np.arange(4, dtype=np.int32)
    single = sample(
        policy,
        params,
        Prompts(tokens, np.ones_like(tokens, bool), indices),
        jax.random.key(0),
        indices,
        indices,
        1.0,
        group_size=2,
        max_length=4,
        end_token=(2, 3),
        pad_token=0,
    )
    # On several devices, float32 sums have another order.
    np.testing.assert_allclose(sharded, single.behavior_logprobs_NxGxR, atol=1e-5)
    ended = np.isin(single.tokens_NxGxR, (2, 3)) & single.mask_NxGxR
    assert ended.any()
    for tokens, mask in zip(
        single.tokens_NxGxR.reshape(-1, 4), single.mask_NxGxR.reshape(-1, 4), strict=True
    ):
        ends = np.flatnonzero(np.isin(tokens, (2, 3)) & mask)
        assert mask.sum() == (ends[0] + 1 if len(ends) else 4)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_host_memory_of_loading_stays_well_below_twice_the_file(run_on_devices, tmp_path):
    config = TransformerConfig(1024, 12, 512, 8, 8, 64, 2048)
    policy = Policy(config)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), layout.abstract_params(policy)
    )
    huggingface.save(tmp_path, policy, params)
    write_checkpoint(tmp_path / "tiny")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 150e6
    printed = run_on_devices("memory_of_loading", tmp_path, tmp_path / "tiny", num_devices=1)
    used = int(printed.splitlines()[-1])
    # The parameters themselves, a tensor or two, and what the allocator keeps.
    assert size <= used < 1.4 * size, (used, size)
