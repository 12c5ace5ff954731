"""Compares model folders of the Llama and Qwen family with the library transformers."""

import functools

import jax
import numpy as np
import pytest

from experiments.train.measure import save_policy
from staleness_grpo.config.build import build_run
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.sampler import sample
from staleness_grpo.types import Prompts
from tests.helpers.tiny import decoder_config

pytest.importorskip("safetensors", reason="the extra hf is not installed")

BOUNDARY = 16  # original_max_position_embeddings; sequences below are three times as long
SHAPE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=BOUNDARY,
)
FAMILY = {  # transformers' name of the model, and its config
    "Llama": dict(
        SHAPE,
        head_dim=16,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3 | {"rope_theta": 500.0},
    ),
    "Qwen2": dict(
        SHAPE,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "Qwen3": dict(
        SHAPE,
        head_dim=12,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
}


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="the extra reference is not installed")
    return pytest.importorskip("transformers", reason="the extra reference is not installed")


@pytest.fixture(scope="module", params=[*FAMILY, "stories260k"])
def checkpoint(request, transformers, tmp_path_factory):
    """Returns a model folder: a random model of the library, or a pretrained one."""
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
            # As created, biases are 0 and norms 1, so that a decoder without them would pass.
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
    """Returns the library's logits with all of it in float64.

    Norms and rotary angles are replaced, because the library keeps them in float32.
    """
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
        # Its logits reach 18, of which 1e-5 is five units in the last place. transformers' own
        # float32 logits are further than that from its float64 ones. So here the two decoders are
        # compared in float64, where they must be the same function. In float32 ours may not be much
        # less exact than theirs.
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
        policy,
        params,
        Prompts(prompt, np.ones_like(prompt, bool), np.arange(2)),
        jax.random.key(0),
        np.zeros(2, int),
        np.arange(2),
        1e-6,  # at this temperature the noise is worth 1e-5 of a logit
        group_size=1,
        max_length=64,
        end_token=None,
        pad_token=0,
    )
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


def test_a_policy_without_a_checkpoint_ends_in_transformers_where_its_task_does(
    transformers, tmp_path
):
    run = build_run(decoder_config())
    save_policy(run, tmp_path)
    theirs, task = reference(transformers, tmp_path).generation_config, run.generator.task
    assert task.end_token not in (None, 2)  # transformers assumes 2 where nothing is said
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        None,
        task.end_token,
        task.pad_token,
    )
