"""Trains from a model folder, and refuses configs that contradict one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.train import __main__ as experiment
from experiments.train import measure
from staleness_grpo.config import validation
from staleness_grpo.config.defaults import default_config
from staleness_grpo.errors import FieldError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.configured import make_policy
from staleness_grpo.policy.huggingface import weights
from staleness_grpo.training.drift import distance
from tests.helpers import byte_model
from tests.helpers.tiny import decoder_config
from tests.policy.huggingface.checkpoints import SMALL, write_checkpoint

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra hf is not installed")


def config_from_checkpoint(folder):
    """Returns the config of two steps from the checkpoint that `write_checkpoint` makes."""
    config = decoder_config(
        **{"warm_start.steps": 100, "steps": 2, "microbatch_prompts": 2, "save_policy": True}
    )
    config.policy = default_config().policy  # shapes of its own would contradict the checkpoint
    config.policy.update(dict(checkpoint=str(folder), vocab_chunks=3, remat="attention"))
    config.task.update(dict(vocab_size=12, max_response_length=2))
    return config


def test_trained_from_a_checkpoint_and_saved_again(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "start")
    config = config_from_checkpoint(tmp_path / "start")
    validation.validate(config, 1)
    summarize = measure.summarize

    def summarize_as_the_folder_goes(records):
        (tmp_path / "start").rename(tmp_path / "moved")
        return summarize(records)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "summarize", summarize_as_the_folder_goes)
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
    # Two Adam steps of 0.02 for each parameter.
    assert 0 < distance(params, start) < 2 * 0.021 * num_params**0.5
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["learner_steps"] == 2 and not summary["collapsed"]


def test_configs_that_contradict_the_checkpoint_are_refused(tmp_path):
    write_checkpoint(tmp_path / "start")
    config = config_from_checkpoint(tmp_path / "start")
    for flag, value, words in (
        ("policy.d_model", 16, "policy.checkpoint has 8: leave the flag out"),
        ("policy.vocab_chunks", 5, "divisor of the checkpoint's vocabulary size 12"),
        ("policy.checkpoint", str(tmp_path / "none"), "there is no folder .*hf download"),
        ("policy.checkpoint", "meta-llama/Llama-3.2-1B", "download a model of the Hub first"),
        ("policy.checkpoint", "", "there is no folder ''"),
        ("task.vocab_size", 13, "the task has 13 tokens, but the checkpoint has only 12"),
        ("microbatch_prompts", 3, "divisor of num_prompts"),
        ("mesh.tensor", 4, "divisor of the checkpoint's 2 key/value heads"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict({flag: value})
        with pytest.raises(FieldError, match=words) as error:
            validation.validate(wrong, 8)
        beginning = "policy.ch" if flag[:4] == "task" else f"{flag}={value}: "
        assert str(error.value).startswith(beginning)
    smaller = config.copy_and_resolve_references()
    smaller.task.vocab_size = 11  # the task's own tokens, which are no words of the checkpoint
    with pytest.raises(
        FieldError, match=r"task\.name=enumerable: the task has its own 11 tokens, .* give a config"
    ):
        validation.validate(smaller, 1)
    write_checkpoint(tmp_path / "short", max_position_embeddings=2)
    config.policy.checkpoint = str(tmp_path / "short")
    with pytest.raises(
        FieldError,
        match=r"max_response_length=2: with the prompt .* 1 tokens.* 2 positions: give at most 1",
    ):
        validation.validate(config, 1)
    config.policy.checkpoint = str(tmp_path / "shortest")
    write_checkpoint(tmp_path / "shortest", max_position_embeddings=1)
    with pytest.raises(FieldError, match=r"has 1 tokens.* 1 positions: remove problems with long"):
        validation.validate(config, 1)
    config.policy.checkpoint = str(tmp_path / "short")
    write_checkpoint(tmp_path / "short", max_position_embeddings=3)
    agreeing = config.copy_and_resolve_references()
    agreeing.policy.d_model = 8
    validation.validate(agreeing, 1)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[]", "holds \\[\\], not an object"),
        ("config.json", "{", "cannot be read"),
        (weights.INDEX, "[]", "holds \\[\\], not an object"),
        (weights.INDEX, "{}", "'weight_map' is missing"),
        (
            weights.INDEX,
            '{"weight_map": null}',
            "weight_map=null: give the file of each tensor",
        ),
        (
            weights.INDEX,
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
    write_checkpoint(tmp_path, dataclasses.replace(SMALL, vocab_size=272))
    byte_tokenizer.write(tmp_path)
    validation.validate(config, 1)
    (tmp_path / name).write_text(text)
    if name == weights.INDEX:
        (tmp_path / weights.WHOLE).unlink()
    with pytest.raises(FieldError, match=words) as error:
        validation.validate(config, 1)
    assert str(error.value).startswith(f"policy.checkpoint={tmp_path}: {tmp_path / name}")


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
@pytest.mark.filterwarnings("error")  # a warning of NumPy would be a second line
def test_tensors_that_are_no_finite_numbers_are_refused(name, value, param_dtype, words, tmp_path):
    write_checkpoint(tmp_path)
    tensors = safetensors.load_file(tmp_path / weights.WHOLE)
    tensors[name] = tensors[name].astype(value.dtype)
    tensors[name].flat[-1] = value
    safetensors.save_file(tensors, tmp_path / weights.WHOLE)
    config = decoder_config(**{"task.vocab_size": 12})
    config.policy = default_config().policy
    config.policy.update(dict(checkpoint=str(tmp_path), param_dtype=param_dtype))
    with pytest.raises(FieldError, match=f"policy.checkpoint=.*{words}"):
        experiment.main(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_policies_of_steps_are_those_that_training_had(tmp_path):
    """Each folder is the policy after that number of updates, as a shorter run ends with it."""
    fields = {"save_policy_every": 2, "save_policy": True, "steps": 6, "lag.max_lag": 1}
    experiment.main(decoder_config(**fields), tmp_path / "long")
    folders = sorted(path.name for path in (tmp_path / "long").glob("policy_*"))
    assert folders == ["policy_00000002", "policy_00000004", "policy_00000006"]
    experiment.main(decoder_config(**fields | {"steps": 4}), tmp_path / "short")
    saved = [
        safetensors.load_file(folder / "model.safetensors")
        for folder in (tmp_path / "long" / "policy_00000004", tmp_path / "short" / "policy")
    ]
    assert saved[0].keys() == saved[1].keys()
    for name, array in saved[0].items():
        np.testing.assert_array_equal(array, saved[1][name])


def test_a_prompt_that_fills_the_positions_is_answered_with_a_fix_that_can_be_done(
    byte_folder, tmp_path
):
    folder = shutil.copytree(byte_folder, tmp_path / "short")
    fields = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 20}
    (folder / "config.json").write_text(json.dumps(fields))
    lines = [{"prompt": "1+1", "answer": "2"}, {"prompt": "1" * 40, "answer": "2"}]
    path = byte_model.problems_file(tmp_path, *lines)
    config = byte_model.text_config(folder)
    problems = dict(name="jsonl", path=str(path), verifier="exact", max_response_length=6)
    config.task = ConfigDict(problems)
    fix = "leave out long prompts by task.max_prompt_length=14 and task.too_long=drop$"
    with pytest.raises(FieldError, match=f"^task.max_response_length=6: .* 20 positions: {fix}"):
        validation.validate(config, 1)
    config.task = ConfigDict(problems | {"max_prompt_length": 14, "too_long": "drop"})
    validation.validate(config, 1)  # what the line says can be done
    stories = byte_model.text_config(folder)
    with pytest.raises(FieldError, match="positions: remove problems with long prompts$"):
        validation.validate(stories, 1)
