"""Faults that public reports of other projects led to here, and that are mended.

Each test names the public report that it was made from, as repository#number.
"""

import ast
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from experiments.train import measure
from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError
from staleness_grpo.policy import huggingface
from staleness_grpo.policy.huggingface import tokenizer
from staleness_grpo.policy.huggingface.config import ModelFolderError
from staleness_grpo.tasks import text, verifiers
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.loop import train
from tests.helpers import byte_model, byte_tokenizer
from tests.helpers.byte_model import problems_file
from tests.helpers.tiny import tiny_config

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
ROOT = pathlib.Path(__file__).parents[1]


def changed(path, **fields):
    """Adds fields to a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def prompt_tokens(folder, problem):
    """Returns the tokens of a prompt that is no chat."""
    loaded = tokenizer.load(folder)
    problems = [text.TextProblem(problem, "2")]
    task = text.PromptedTask(loaded, problems, verifiers.exact, max_response_length=4)
    return task.prompts([0]).tokens_NxP[0].tolist()


def test_a_prompt_does_not_end_with_the_end_token_that_the_tokenizer_adds(tmp_path):
    """CarperAI/trlx#287."""
    byte_tokenizer.write(tmp_path)
    hi = prompt_tokens(tmp_path, "hi")
    stored = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    stored.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.load(tmp_path).encode("hi") == [*hi, 1]
    assert prompt_tokens(tmp_path, "hi") == hi and hi[0] == 0


def test_a_prompt_that_was_rendered_before_has_one_first_token(tmp_path):
    """huggingface/open-r1#462, for prompts without a chat template."""
    byte_tokenizer.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0}))
    assert prompt_tokens(tmp_path, "<s>hi") == prompt_tokens(tmp_path, "hi")


def test_a_verifier_sees_tags_that_are_special_tokens(tmp_path):
    """huggingface/trl#2897."""
    byte_tokenizer.write(tmp_path)
    tags = {"additional_special_tokens": ["<answer>", "</answer>"]}
    changed(tmp_path / "tokenizer_config.json", **tags)
    loaded = tokenizer.load(tmp_path)
    problems = [text.TextProblem("1+1=", "2")]
    task = text.PromptedTask(loaded, problems, verifiers.exact, max_response_length=8)
    response = loaded.encode("<answer>4</answer>", add_special_tokens=False)
    assert len(response) == 3
    assert task.decode([loaded.bos_token, *response, 1, task.pad_token]) == "<answer>4</answer>"


def test_an_end_token_that_ends_no_response_is_named(tmp_path, capsys):
    """huggingface/open-r1#663."""
    byte_tokenizer.write(tmp_path)
    problems = [text.TextProblem("1+1=", "2")]

    def warned():
        loaded = tokenizer.load(tmp_path)
        task = text.PromptedTask(loaded, problems, verifiers.exact, max_response_length=4)
        measure._warn_of_end_token(task)
        return capsys.readouterr().err

    assert warned() == ""
    changed(tmp_path / "generation_config.json", eos_token_id=5)
    assert warned().startswith("the eos_token '</s>' of the tokenizer does not end a response: if")


FILES = sorted((ROOT / "staleness_grpo").rglob("*.py")) + sorted(
    (ROOT / "experiments").rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_read_or_written_in_the_encoding_of_the_machine(path):
    """huggingface/transformers#38553: in another locale, a chat template was another one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_binary = any(
            isinstance(argument, ast.Constant) and "b" in str(argument.value)
            for argument in node.args
        )
        is_text = name in ("read_text", "write_text") or (name == "open" and not is_binary)
        module = getattr(getattr(node.func, "value", None), "id", "")
        if is_text and module != "os":
            assert "encoding" in {keyword.arg for keyword in node.keywords}, node.lineno


def test_a_template_that_is_not_utf_8_is_refused_by_its_file(tmp_path):
    """huggingface/transformers#38553."""
    byte_tokenizer.write(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    with pytest.raises(ModelFolderError, match="chat_template.jinja cannot be read"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("chat_template", [{"name": "default"}], "give chat_template the form"),
        ("chat_template", ["{{ messages }}"], "give chat_template the form"),
        ("chat_template", 5, "chat_template is 5: give a text"),
        ("pad_token", 5, "pad_token is 5: give the text of the token"),
        ("pad_token", {"__type": "AddedToken"}, "pad_token is .*: give the text of the token"),
    ],
)
def test_fields_of_another_form_are_refused_by_file_and_name(field, value, message, tmp_path):
    byte_tokenizer.write(tmp_path)
    changed(tmp_path / "tokenizer_config.json", **{field: value})
    with pytest.raises(ModelFolderError, match=f"tokenizer_config.json: {message}"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("temperature", [1e-40, 1e-12, 1e-5, 0.0])
def test_a_temperature_that_leaves_no_gradient_is_refused(temperature):
    """vllm-project/vllm#890, NVIDIA/TensorRT-LLM#15715."""
    config = tiny_config(**{"sampler.temperature": temperature})
    with pytest.raises(FieldError, match=r"^sampler.temperature=.*: give a number >= 0.001"):
        validation.validate(config, 1)


def test_one_prompt_that_is_too_long_is_named_by_its_line(tmp_path):
    """huggingface/trl#3180."""
    byte_model.write(tmp_path)
    changed(tmp_path / "config.json", max_position_embeddings=64)
    config = byte_model.text_config(tmp_path)
    lines = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "long " * 20, "answer": "3"}]
    path = problems_file(tmp_path, *lines)
    fields = dict(name="jsonl", path=str(path), verifier="number", max_response_length=6)
    config.task = ConfigDict(fields)
    with pytest.raises(FieldError, match=r"=6: with the prompt of line 2, which has 101 tokens"):
        validation.validate(config, 1)


def test_a_folder_in_the_checkpoint_does_not_break_the_saving(tmp_path):
    """NVIDIA/TensorRT-LLM#5429."""
    source, saved = tmp_path / "source", tmp_path / "saved"
    source.mkdir()
    byte_model.write(source)
    (source / "tokenizer").mkdir()
    policy, params = huggingface.load(source)
    huggingface.save(saved, policy, params, source)
    assert (saved / "tokenizer.json").exists() and not (saved / "tokenizer").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "answer": "2", "answer": "3"}', "has the field answer twice"),
        (
            '{"prompt": "a", "question": "b", "answer": "#### 2"}',
            "has both a prompt and a question",
        ),
    ],
)
def test_a_problem_that_can_be_read_in_two_ways_is_refused(line, message, tmp_path):
    """freedomofpress/securedrop-client#1752."""
    with pytest.raises(FieldError, match=f"line 1 {message}"):
        text.read_problems(problems_file(tmp_path, line))


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg")],
)
def test_a_run_does_not_go_on_with_other_random_numbers(name, value, tmp_path):
    """jax-ml/jax#21232, verl-project/verl#7816."""
    config = tiny_config(steps=2)
    run = build_run(config)
    list(train(run, Checkpoints(tmp_path, run.config)))
    manifest = tmp_path / "step_00000002" / "manifest.json"
    settings = json.loads(manifest.read_text())["jax_settings"]
    changed(manifest, jax_settings=settings | {name: value})

    def refuse(reason, hint):
        return AssertionError(reason)

    again = build_run(config)
    reason = re.escape(f"its random numbers are those of {name}={value}, but this run has")
    with pytest.raises(AssertionError, match=reason):
        Checkpoints(tmp_path, again.config).restore(again, refuse)
