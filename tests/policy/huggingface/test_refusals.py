"""Tests that model folders which cannot be used are refused, by the name of what is wrong."""

import pytest

from staleness_grpo.policy import huggingface
from staleness_grpo.policy.architecture import TransformerConfig
from staleness_grpo.policy.huggingface.config import ModelFolderError
from tests.policy.huggingface.checkpoints import write_checkpoint

pytest.importorskip("safetensors", reason="the extra hf is not installed")

LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


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
        (
            dict(
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
                rope_scaling={"rope_type": "default", "rope_theta": 5e5},
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
        (
            dict(num_key_value_heads=3),
            "config.json: num_kv_heads=3: give a divisor of num_heads=4, or another",
        ),
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
    write_checkpoint(tmp_path, **fields)
    with pytest.raises(ModelFolderError, match=words) as error:
        huggingface.load(tmp_path)
    assert len(str(error.value).split(": ")) > 2  # place, problem, hint


def test_folders_that_are_no_checkpoints_are_refused(tmp_path):
    with pytest.raises(ModelFolderError, match="config.json cannot be read"):
        huggingface.load(tmp_path)
    write_checkpoint(tmp_path / "whole")
    weights = tmp_path / "whole" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelFolderError, match="model.safetensors cannot be read"):
        huggingface.load(tmp_path / "whole")
    weights.unlink()
    with pytest.raises(ModelFolderError, match="neither model.safetensors nor"):
        huggingface.load(tmp_path / "whole")
    with pytest.raises(ModelFolderError, match="qkv_bias and qk_norm"):
        write_checkpoint(
            tmp_path / "both", TransformerConfig(12, 1, 8, 2, 2, 4, 8, qkv_bias=True, qk_norm=True)
        )
