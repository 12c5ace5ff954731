"""Checkpoints of the Llama and Qwen family: against the transformers library, there and back, and refusals by name."""

import dataclasses
import errno
import functools
import json
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.train import __main__ as experiment
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import RopeScaling, TransformerConfig
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.policy.huggingface.config import ModelFolderError, read_config
from staleness_grpo.policy.sampler import sample
from staleness_grpo.policy.transformer import Policy
from staleness_grpo.training.diagnostics import distance
from staleness_grpo.training.run import build_run
from staleness_grpo.types import Prompts
from tests.policy.test_transformer import random_params
from tests.helpers.tiny import tiny_config

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")

BOUNDARY = 16  # original_max_position_embeddings: sequences below are three times as long
SHAPE = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=BOUNDARY)  # fmt: skip
FAMILY = {  # transformers' name of the model: its config
    "Llama": dict(SHAPE, head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3 | {"rope_theta": 500.0}),
    "Qwen2": dict(SHAPE, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "Qwen3": dict(SHAPE, head_dim=12, tie_word_embeddings=True, rope_parameters={"rope_type": "default",
                                                                                   "rope_theta": 1e6}),
}  # fmt: skip
OURS = TransformerConfig(
    vocab_size=12, num_layers=2, d_model=8, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=10,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16), norm_epsilon=1e-6, rope_theta=5e5,
)  # fmt: skip


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="the extra reference is not installed")
    return pytest.importorskip("transformers", reason="the extra reference is not installed")


@pytest.fixture(scope="module", params=[*FAMILY, "stories260k"])
def checkpoint(request, transformers, tmp_path_factory):
    """A checkpoint folder: a model of the library with every parameter random, or a pretrained one."""
    if request.param == "stories260k":
        folder = request.getfixturevalue("models") / "stories260k"
        if not folder.is_dir():
            pytest.skip(f"there is no {folder}")
        return folder
    import torch

    folder = tmp_path_factory.mktemp(request.param)
    config = getattr(transformers, f"{request.param}Config")(**FAMILY[request.param])
    model = getattr(transformers, f"{request.param}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases are 0 and norms 1 as created: a decoder without them would pass.
            center, spread = (
                (1.0, 0.3) if "norm" in name else (0.0, 0.5 if "bias" in name else 0.15)
            )
            parameter.copy_(center + spread * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def reference(transformers, folder):
    import torch

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def float64_logits(transformers, folder, tokens):
    """The library's logits with all of it in float64: its norms and rotary angles too, which stay float32 otherwise."""
    import torch

    model = reference(transformers, folder).double()
    rope, head_dim = model.config.rope_parameters, model.config.head_dim
    assert rope["rope_type"] == "default"
    frequency = rope["rope_theta"] ** (
        -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    )

    def rotary(x, position_ids):
        angle = (position_ids[..., None] * frequency).repeat(1, 1, 2)
        return angle.cos(), angle.sin()

    def rms_norm(norm, x):
        return (
            norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        )

    model.model.rotary_emb.forward = rotary
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(rms_norm, module)
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def test_logits_and_greedy_continuation_are_those_of_transformers(checkpoint, transformers):
    import torch

    model = reference(transformers, checkpoint)
    policy, params = huggingface.load(checkpoint)
    tokens = (
        np.random.default_rng(0)
        .integers(3, model.config.vocab_size, (2, 3 * BOUNDARY))
        .astype(np.int32)
    )
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.abs(theirs).max() > 1  # not near 0, where anything agrees
    ours = np.asarray(jax.jit(policy.apply)(params, tokens))
    if checkpoint.name != "stories260k":
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    else:
        # Its logits reach 18, of which 1e-5 is five units in the last place: transformers' own float32 ones are further
        # than that from its float64 ones, and its two kinds of attention from each other. So here the two decoders are
        # compared in float64, where they must be the same function, and float32 may be no less exact than theirs.
        exact = float64_logits(transformers, checkpoint, tokens)
        with jax.enable_x64(True):
            wide, wide_params = huggingface.load(checkpoint, dtype="float64", param_dtype="float64")
            np.testing.assert_allclose(
                jax.jit(wide.apply)(wide_params, tokens), exact, rtol=0, atol=1e-12
            )
        assert np.abs(ours - exact).max() < 1.5 * np.abs(theirs - exact).max() < 5e-5

    prompt = tokens[:, :5]
    greedy = model.generate(
        torch.from_numpy(prompt).long(),
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=[],
        pad_token_id=0,
    )
    ours = sample(
        policy, params, Prompts(prompt, np.ones_like(prompt, bool), np.arange(2)), jax.random.key(0), np.zeros(2, int),
        np.arange(2), 1e-6, group_size=1, max_length=64, end_token=None, pad_token=0,
    )  # fmt: skip  # At this temperature the noise is worth 1e-5 of a logit.
    np.testing.assert_array_equal(ours.tokens_NxGxR[:, 0], greedy[:, 5:].numpy())


def test_saved_and_loaded_by_transformers_it_is_the_same(checkpoint, transformers, tmp_path):
    policy, params = huggingface.load(checkpoint)
    huggingface.save(tmp_path, policy, params, source=checkpoint)
    ours, theirs = (
        reference(transformers, folder).state_dict() for folder in (tmp_path, checkpoint)
    )
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert tensor.equal(ours[name]), name
    ours, theirs = (
        reference(transformers, folder).config.to_dict() for folder in (tmp_path, checkpoint)
    )
    for name in set(theirs) - {"_name_or_path"}:
        assert ours[name] == theirs[name], name
    for path in checkpoint.glob("*token*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_trained_from_a_checkpoint_and_saved_again(tmp_path, monkeypatch):
    write(tmp_path / "start")
    config = tiny_config(
        **{"warm_start.steps": 100, "steps": 2, "microbatch_prompts": 2, "save_policy": True}
    )
    config.policy = default_config().policy  # shapes of their own would contradict the checkpoint
    config.policy.update(
        dict(checkpoint=str(tmp_path / "start"), vocab_chunks=3, remat="attention")
    )
    config.task.update(dict(vocab_size=12, max_response_length=2))
    validation.validate(config, 1)
    records_summary = experiment.summarize

    def summary_as_the_folder_goes(records):
        (tmp_path / "start").rename(tmp_path / "moved")
        return records_summary(records)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "summarize", summary_as_the_folder_goes)
        with pytest.raises(
            FieldError, match="config.json cannot be read .* run the same command again"
        ):
            experiment.main(config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    (tmp_path / "moved").rename(tmp_path / "start")
    experiment.main(config, tmp_path / "run")
    policy, params = huggingface.load(tmp_path / "run" / "policy")
    assert (
        dataclasses.replace(policy.config, vocab_chunks=3, remat="attention")
        == make_policy(config.policy, 12).config
    )
    start = huggingface.load(tmp_path / "start")[1]
    num_params = sum(leaf.size for leaf in jax.tree.leaves(start))
    assert (
        0 < distance(params, start) < 2 * 0.021 * num_params**0.5
    )  # two Adam steps of 0.02 for each parameter
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["learner_steps"] == 2 and not summary["collapsed"]

    for flag, value, words in (
        ("policy.d_model", 16, "policy.checkpoint has 8: leave the flag out"),
        ("policy.vocab_chunks", 5, "divisor of the checkpoint's vocabulary 12"),
        ("policy.checkpoint", str(tmp_path / "none"), "there is no folder .*hf download"),
        ("policy.checkpoint", "meta-llama/Llama-3.2-1B", "download a model of the Hub first"),
        ("policy.checkpoint", "", "there is no folder ''"),
        ("task.vocab_size", 13, "the task has 13 tokens, the checkpoint 12"),
        ("microbatch_prompts", 3, "divisor of num_prompts"),
        ("mesh.tensor", 4, "divisor of the checkpoint's 2 key/value heads"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict({flag: value})
        with pytest.raises(FieldError, match=words) as error:
            validation.validate(wrong, 8)
        assert str(error.value).startswith(
            "--config.policy.ch" if flag[:4] == "task" else f"--config.{flag}={value}: "
        )
    smaller = config.copy_and_resolve_references()
    smaller.task.vocab_size = (
        11  # numbers of its own, which the checkpoint's words have nothing to do with
    )
    with pytest.raises(
        FieldError, match=r"task\.name=enumerable: its tokens are its own 11, .* config file"
    ):
        validation.validate(smaller, 1)
    write(tmp_path / "short", max_position_embeddings=2)
    config.policy.checkpoint = str(tmp_path / "short")
    with pytest.raises(
        FieldError, match="max_response_length=2: with a prompt's 1 tokens .* 2 positions"
    ):
        validation.validate(config, 1)
    write(tmp_path / "short", max_position_embeddings=3)
    agreeing = config.copy_and_resolve_references()
    agreeing.policy.d_model = 8
    validation.validate(agreeing, 1)


def test_weights_that_cannot_be_written_are_an_error_of_the_system(tmp_path):
    """As a full disk is; here a limit on the size of files, which needs no disk of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            huggingface.write_tensors(
                {"weight": np.zeros(1000, np.float32)}, tmp_path / "model.safetensors"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and error.value.filename == str(
        tmp_path / "model.safetensors"
    )


def write(folder, config=OURS, **fields):
    """A small checkpoint of our own, with a changed config.json."""
    policy = Policy(config)
    params = random_params(policy)
    huggingface.save(folder, policy, params)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | fields))
    return params


def test_several_files_bfloat16_and_either_spelling_of_rope(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 1000)
    params = write(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    policy, loaded = huggingface.load(tmp_path)
    assert policy.config == OURS
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

    fields = json.loads((tmp_path / "config.json").read_text())
    fields["rope_parameters"] = fields.pop("rope_scaling") | {
        "rope_theta": fields.pop("rope_theta")
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path, dtype="float32") == OURS

    policy, loaded = huggingface.load(tmp_path, dtype="bfloat16", param_dtype="bfloat16")
    assert policy.config.dtype == "bfloat16"
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), loaded, params
    )
    huggingface.save(tmp_path / "half", policy, loaded)
    again = huggingface.load(tmp_path / "half", param_dtype="bfloat16")[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, again)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(architectures=["MistralForCausalLM"]), "MistralForCausalLM is not supported"),
        (dict(architectures=None), "None is not supported"),
        (dict(rope_scaling={"type": "yarn", "factor": 4.0}), "rope_type=yarn"),
        (
            dict(rope_parameters={"rope_type": "linear", "factor": 2.0}, rope_scaling=None),
            "rope_type=linear",
        ),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 4.0}), "low_freq_factor.*missing"),
        (
            dict(
                rope_parameters={"rope_type": "default"},
                rope_scaling={"rope_type": "llama3", "factor": 8.0},
            ),
            "contradict each other",
        ),
        (dict(attention_bias=True), "attention_bias=True"),
        (dict(is_causal=False), "is_causal=False"),
        (dict(hidden_act="gelu"), "hidden_act=gelu"),
        (dict(use_sliding_window=True), "use_sliding_window"),
        (dict(layer_types=["sliding_attention", "full_attention"]), "layer_types"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(intermediate_size=11), r"model.layers.0.mlp.\w+.weight has shape"),
        (dict(num_hidden_layers=1), "not of this architecture: model.layers.1"),
        (dict(num_hidden_layers=3), "missing: model.layers.2.input_layernorm.weight"),
        (dict(architectures=["Qwen2ForCausalLM"]), "missing: model.layers.0.self_attn.k_proj.bias"),
        (dict(tie_word_embeddings=True), "lm_head.weight differs"),
        (
            dict(num_attention_heads="4"),
            'config.json: num_attention_heads="4": give a whole number above 0',
        ),
        (dict(num_attention_heads=0), "num_attention_heads=0: give"),
        (dict(num_key_value_heads=3), "config.json: num_heads=4 is not a multiple"),
        (dict(vocab_size=None), "config.json: vocab_size=null: give"),
        (dict(rms_norm_eps=None), "rms_norm_eps=null: give a number above 0"),
        (dict(rope_theta="1e4"), "rope_theta="),
        (
            dict(rope_parameters="default"),
            'rope_parameters="default": give an object of fields, or null',
        ),
        (dict(rope_scaling=LLAMA3 | {"factor": "8"}), 'factor="8": give'),
        (
            dict(architectures="LlamaForCausalLM"),
            'architectures="LlamaForCausalLM": give a list of names',
        ),
        (dict(tie_word_embeddings="no"), "tie_word_embeddings=.*: give true or false"),
        (
            dict(eos_token_id="</s>"),
            "eos_token_id=.*: give a token's number, or a list of them, or null",
        ),
    ],
)
def test_refused_by_name(fields, words, tmp_path):
    write(tmp_path, **fields)
    with pytest.raises(ModelFolderError, match=words) as error:
        huggingface.load(tmp_path)
    assert len(str(error.value).split(": ")) > 2  # place, problem, hint


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[]", "holds \\[\\], not an object"),
        ("config.json", "{", "cannot be read"),
        (huggingface.INDEX, "[]", "holds \\[\\], not an object"),
        (huggingface.INDEX, "{}", "'weight_map' is missing"),
        (
            huggingface.INDEX,
            '{"weight_map": null}',
            "weight_map=null: give the file of each tensor",
        ),
        (
            huggingface.INDEX,
            '{"weight_map": {"a": 1}}',
            "weight_map=.*: give the file of each tensor",
        ),
        ("generation_config.json", "null", "holds null, not an object"),
        (
            "generation_config.json",
            '{"eos_token_id": "</s>"}',
            'eos_token_id="</s>": give a token\'s number',
        ),
        ("tokenizer_config.json", "[]", "holds \\[\\], not an object"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name, text, words, tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from tests.helpers import byte_tokenizer

    config = default_config()
    config.warm_start.steps = 0
    config.policy.checkpoint = str(tmp_path)
    config.task = ConfigDict(dict(name="stories", rule="mentions", max_response_length=2))
    write(tmp_path, dataclasses.replace(OURS, vocab_size=272))
    byte_tokenizer.write(tmp_path)
    validation.validate(config, 1)
    (tmp_path / name).write_text(text)
    if name == huggingface.INDEX:
        (tmp_path / huggingface.WHOLE).unlink()
    with pytest.raises(FieldError, match=words) as error:
        validation.validate(config, 1)
    assert str(error.value).startswith(f"--config.policy.checkpoint={tmp_path}: {tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "value", "param_dtype", "words"),
    [
        (
            "model.norm.weight",
            np.float32(np.nan),
            "float32",
            "1 tensors are not finite in float32: model.norm",
        ),
        ("lm_head.weight", np.float32(1e30), "float16", "not finite in float16: lm_head.weight"),
        ("model.norm.weight", np.int8(1), "float32", "model.norm.weight is of type I8: give"),
    ],
)
@pytest.mark.filterwarnings("error")  # NumPy's would be a second line
def test_tensors_that_are_no_finite_numbers_are_refused(name, value, param_dtype, words, tmp_path):
    write(tmp_path)
    tensors = safetensors.load_file(tmp_path / huggingface.WHOLE)
    tensors[name] = tensors[name].astype(value.dtype)
    tensors[name].flat[-1] = value
    safetensors.save_file(tensors, tmp_path / huggingface.WHOLE)
    config = tiny_config(**{"task.vocab_size": 12})
    config.policy = default_config().policy
    config.policy.update(dict(checkpoint=str(tmp_path), param_dtype=param_dtype))
    with pytest.raises(FieldError, match=f"policy.checkpoint=.*{words}"):
        experiment.main(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_without_a_checkpoint_ends_in_transformers_where_its_task_does(
    transformers, tmp_path
):
    config = tiny_config()
    run = build_run(config)
    experiment.save_policy(run, config, tmp_path)
    theirs, task = reference(transformers, tmp_path).generation_config, run.generator.task
    assert task.end_token not in (None, 2)  # what is assumed where nothing is said
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        None,
        task.end_token,
        task.pad_token,
    )


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="config.json cannot be read"):
        huggingface.load(tmp_path)
    write(tmp_path / "whole")
    weights = tmp_path / "whole" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelFolderError, match="model.safetensors cannot be read"):
        huggingface.load(tmp_path / "whole")
    weights.unlink()
    with pytest.raises(ModelFolderError, match="neither model.safetensors nor"):
        huggingface.load(tmp_path / "whole")
    with pytest.raises(ModelFolderError, match="qkv_bias and qk_norm"):
        write(
            tmp_path / "both", TransformerConfig(12, 1, 8, 2, 2, 4, 8, qkv_bias=True, qk_norm=True)
        )


def test_saved_over_older_weights_the_new_ones_load(tmp_path, monkeypatch):
    """Of one file over several, and the other way round; and over the folder that they came from."""
    policy = Policy(OURS)
    old, new = (random_params(policy, seed) for seed in (0, 1))
    for first, second in ((1e9, 1000), (1000, 1e9)):
        monkeypatch.setattr(huggingface, "SHARD_BYTES", first)
        huggingface.save(tmp_path, policy, old)
        monkeypatch.setattr(huggingface, "SHARD_BYTES", second)
        huggingface.save(tmp_path, policy, new, source=tmp_path)
        jax.tree.map(np.testing.assert_array_equal, huggingface.load(tmp_path)[1], new)


def test_a_stored_copy_of_tied_embeddings_is_accepted(tmp_path):
    params = write(tmp_path / "untied")
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


SHARDED = """
import sys, jax, numpy as np
from staleness_grpo import mesh as mesh_lib
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.sampler import sample
from staleness_grpo.types import Prompts
mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
read, sizes = huggingface.read_tensor, []
def counted(*place):
    sizes.append((part := read(*place)).size)
    return part
for folder in (f"{FOLDER}/tied", FOLDER):
    single = huggingface.load(folder)[1]
    huggingface.read_tensor = counted
    policy, params = huggingface.load(folder, mesh=mesh)
    huggingface.read_tensor = read
    jax.tree.map(np.testing.assert_array_equal, params, single)
    parts = [shard.data.size for leaf in jax.tree.leaves(params)
             for shard in {str(shard.index): shard for shard in leaf.addressable_shards}.values()]
    assert sorted(sizes) == sorted(parts), (sizes, parts)  # each part by itself, and once
    sizes.clear()
for leaf in jax.tree.leaves(params):
    assert leaf.ndim == 1 or leaf.addressable_shards[0].data.size == leaf.size // 4, leaf.sharding
with jax.set_mesh(mesh):
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3)
    prompts = Prompts(tokens, np.ones_like(tokens, bool), np.arange(4))
    prompts = jax.device_put(prompts, mesh_lib.batch_sharding(mesh))
    indices = np.arange(4, dtype=np.int32)
    out = sample(policy, params, prompts, jax.random.key(0), indices, indices, 1.0, group_size=2, max_length=4,
                 end_token=(2, 3), pad_token=0)
print(np.asarray(out.behavior_logprobs_NxGxR).tolist())
"""


def test_read_into_its_sharding_and_sampled_there(run_on_devices, tmp_path):
    write(tmp_path)
    write(tmp_path / "tied", dataclasses.replace(OURS, tie_embeddings=True, qkv_bias=True))
    sharded = json.loads(run_on_devices(f"FOLDER = {str(tmp_path)!r}\n{SHARDED}").splitlines()[-1])
    policy, params = huggingface.load(tmp_path)
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3)
    indices = np.arange(4, dtype=np.int32)
    single = sample(
        policy, params, Prompts(tokens, np.ones_like(tokens, bool), indices), jax.random.key(0), indices, indices, 1.0,
        group_size=2, max_length=4, end_token=(2, 3), pad_token=0,
    )  # fmt: skip
    np.testing.assert_allclose(
        sharded, single.behavior_logprobs_NxGxR, atol=1e-5
    )  # float32 sums in another order
    ended = np.isin(single.tokens_NxGxR, (2, 3)) & single.mask_NxGxR
    assert ended.any()
    for tokens, mask in zip(
        single.tokens_NxGxR.reshape(-1, 4), single.mask_NxGxR.reshape(-1, 4), strict=True
    ):
        ends = np.flatnonzero(np.isin(tokens, (2, 3)) & mask)
        assert mask.sum() == (ends[0] + 1 if len(ends) else 4)


MEMORY = """
import jax, re
from staleness_grpo.policy import huggingface
def status(field):  # not getrusage, whose peak is the parent's if that was higher
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
huggingface.load(f"{FOLDER}/tiny")  # what the first load brings in once is no part of a large one's peak
before = status("VmRSS")
huggingface.load(FOLDER)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_host_memory_of_loading_stays_well_below_twice_the_file(run_on_devices, tmp_path):
    config = TransformerConfig(1024, 12, 512, 8, 8, 64, 2048)
    policy = Policy(config)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), huggingface.abstract_params(policy)
    )
    huggingface.save(tmp_path, policy, params)
    write(tmp_path / "tiny")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 150e6
    used = int(run_on_devices(f"FOLDER = {str(tmp_path)!r}\n{MEMORY}", 1).splitlines()[-1])
    assert size <= used < 1.4 * size, (
        used,
        size,
    )  # the parameters themselves, a tensor or two, and the allocator's
