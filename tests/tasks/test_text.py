"""Tasks of text: their prompts, their samples and their refusals."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest

from staleness_grpo.config import validation
from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import verifiers
from staleness_grpo.tasks.base import TextTask

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.tasks import text  # noqa: E402
from tests.helpers.byte_model import problems_file, text_config  # noqa: E402


def jsonl(letters, path, **fields):
    defaults: dict[str, Any] = dict(path=str(path), verifier="number", max_response_length=8)
    return text.jsonl_task(letters, **(defaults | fields))


def test_prompts_are_the_problems_padded_at_the_left(letters, tmp_path):
    path = problems_file(
        tmp_path,
        {"prompt": "1+1?", "answer": " 2 "},
        "",
        {"question": "2+20?", "answer": "x\n#### 22"},
    )
    task = jsonl(letters, path, prompt="Q: {prompt} {x}")
    assert isinstance(task, TextTask)
    assert (task.num_prompts, task.vocab_size) == (2, 259)
    assert (task.end_token, task.pad_token) == ((1, 5), 2)
    assert task.prompt_length == len("Q: 2+20? {x}") + 1
    prompts = task.prompts(np.array([1, 0, 0]))
    assert [task.decode(tokens) for tokens in prompts.tokens_NxP] == [
        "Q: 2+20? {x}",
        "Q: 1+1? {x}",
        "Q: 1+1? {x}",
    ]
    np.testing.assert_array_equal(prompts.mask_NxP.sum(axis=1), [13, 12, 12])
    # The first token of a text, or padding.
    np.testing.assert_array_equal(prompts.tokens_NxP[:, 0], [0, 2, 2])
    np.testing.assert_array_equal(prompts.index_N, [1, 0, 0])
    tokens = np.full((2, 2, 8), 2)
    for n, g, answer in ((0, 0, "22"), (0, 1, "2"), (1, 0, "= 2")):
        encoded = letters.encode(answer, add_special_tokens=False)
        tokens[n, g, : len(encoded) + 1] = [*encoded, 1]  # with its stop token
    texts, references = task.samples(np.array([1, 0]), tokens, tokens != 2)
    assert texts == ["22", "2", "= 2", ""]
    assert references == ["22", "22", "2", "2"]
    rewards = [task.verify(*pair) for pair in zip(texts, references, strict=True)]
    assert rewards == [1.0, 0.0, 1.0, 0.0]


def test_the_stop_token_is_no_part_of_the_text_whatever_it_is(letters, tmp_path):
    """Token 5 is a letter here, as </s> is in tokenizers that do not mark it as special."""
    task = jsonl(letters, problems_file(tmp_path, {"prompt": "a", "answer": "2"}), verifier="exact")
    tokens = np.array([[[*letters.encode("yes", add_special_tokens=False), 5, 2]]])
    assert letters.decode([5]) and task.samples([0], tokens, tokens != 2)[0] == ["yes"]


def test_a_line_may_hold_any_character_of_json(tmp_path):
    line = json.dumps({"prompt": "a\u2028b", "answer": "1"}, ensure_ascii=False)
    assert (
        text.read_problems(problems_file(tmp_path, "\ufeff" + line + "\r"))[0].prompt == "a\u2028b"
    )


def test_a_gsm8k_answer_is_the_text_behind_its_last_marker(tmp_path):
    path = problems_file(tmp_path, {"question": "a", "answer": "#### 1, no:\n#### 2"})
    assert text.read_problems(path) == [text.TextProblem("a", "2", "line 1")]


def test_problems_that_cannot_be_asked_or_judged_are_refused(letters, tmp_path):
    plain_letters = dataclasses.replace(
        letters, tokenizer=tokenizers.Tokenizer(letters.tokenizer.model)
    )
    for problems, message in (
        ([], "there are no problems"),
        ([text.TextProblem(p, "1") for p in ("a", "")], "problem 2 is empty"),
    ):
        with pytest.raises(FieldError, match=message):
            text.PromptedTask(plain_letters, problems, verifiers.exact, max_response_length=8)


@pytest.mark.parametrize("answer", ["yes", "11:30", "1768_9", "3 or 4"])
def test_an_answer_that_is_more_than_a_number_is_refused_with_its_line(answer, letters, tmp_path):
    lines = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": answer}]
    with pytest.raises(FieldError, match=f"'{answer}' on line 2 of path .*exact.*math_verify"):
        jsonl(letters, problems_file(tmp_path, *lines))
    jsonl(letters, problems_file(tmp_path, *lines), verifier="exact")


def test_stop_and_pad_tokens_outside_the_vocabulary_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    for fields in (
        dict(eos_token_id=[1, 264]),
        dict(eos_token_id=1, pad_token_id=264),
        dict(eos_token_id=-1),
    ):
        (tmp_path / "copy" / "generation_config.json").write_text(json.dumps(fields))
        with pytest.raises(FieldError, match=r"policy.checkpoint=.*not all among its 264"):
            validation.validate(text_config(tmp_path / "copy"), 1)


def test_chats_are_written_in_the_checkpoints_template(letters, tmp_path):
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})

    def asked(**fields):
        task = jsonl(letters, path, **fields)
        return task.decode(task.prompts([0]).tokens_NxP[0])

    assert asked(chat=True) == "[user]1+1?[assistant]"
    assert asked(chat=True, system="Add.") == "[system]Add.[user]1+1?[assistant]"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1 is not JSON"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "a"}], "line 2 has no text as its answer"),
        ([{"answer": "b"}], "line 1 has no text as its question"),
        ([{"prompt": "a", "answer": True}], "line 1 has no text as its answer"),
        ([[1]], "line 1 is not a JSON object"),
        (
            [{"question": "a", "answer": "b"}],
            "line 1 has a question whose answer has nothing after '####'",
        ),
        (
            [{"question": "a", "answer": "b #### "}],
            "line 1 has a question whose answer has nothing after '####'",
        ),
        ([{"prompt": " ", "answer": "b"}], "line 1 has no text as its prompt"),
        ([{"prompt": "a", "answer": "\n"}], "line 1 has no text as its answer"),
        ([{"prompt": "\ud800", "answer": "b"}], "line 1 has half a surrogate pair.* in its prompt"),
        (["[" * 100_000 + "]" * 100_000], "line 1 is not JSON"),
        ([""], "the file has no problems"),
    ],
)
def test_lines_that_are_not_problems_are_refused_by_number(tmp_path, lines, message):
    with pytest.raises(FieldError, match=message):
        text.read_problems(problems_file(tmp_path, *lines))


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (dict(rule="rhyme"), "task.rule"),
        (dict(max_response_length=0), "task.max_response_length"),
        (dict(name="jsonl", path="absent.jsonl", verifier="number"), "task.path"),
        (dict(name="jsonl", path=__file__, verifier="number"), "task.path"),
        (dict(name="jsonl", path="", verifier="vote"), "task.verifier"),
        (dict(name="poetry"), "task.name"),
    ],
)
def test_fields_that_cannot_be_used_are_refused_by_name(folder, task, field):
    config = text_config(folder)
    if task.get("name") == "jsonl":
        del config.task.rule
    config.task.update(task)
    with pytest.raises(FieldError, match=f"^{field}="):
        validation.validate(config, 1)


def test_a_text_task_needs_a_tokenizer_and_a_system_message_a_chat(letters, folder, tmp_path):
    config = text_config(folder)
    config.policy.checkpoint = None
    with pytest.raises(FieldError, match="^task.name=stories: the task stories needs a tokenizer"):
        validation.validate(config, 1)
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(FieldError, match="a system message needs chat=True"):
        jsonl(letters, path, system="Add.")
    with pytest.raises(FieldError, match="write {prompt} where"):
        jsonl(letters, path, prompt="Q:")


def test_reasoning_gym_problems_are_the_librarys(letters):
    library = pytest.importorskip("reasoning_gym", reason="the extra tasks is not installed")
    options = dict(min_terms=2, max_terms=2)
    task = text.reasoning_gym_task(
        letters, dataset="chain_sum", size=3, seed=5, options=options, max_response_length=8
    )
    entries = library.create_dataset("chain_sum", size=3, seed=5, **options)
    asked = [task.decode(tokens) for tokens in task.prompts(np.arange(3)).tokens_NxP]
    assert asked == [entry["question"] for entry in entries]
    _, references = task.samples(np.arange(3), np.zeros((3, 1, 8), int), np.zeros((3, 1, 8), bool))
    for entry, reference in zip(entries, references, strict=True):
        assert task.verify(entry["answer"], reference) == 1.0
    refused: list[tuple[str, Any, str]] = [
        ("chain_summ", {}, "dataset"),
        ("chain_sum", {"min_terms": 0}, "options"),
        ("chain_sum", {"size": 9}, "options"),
        ("chain_sum", {"seed": 1}, "options"),
        ("chain_sum", "abc", "options"),
    ]
    for dataset, bad_options, field in refused:
        with pytest.raises(FieldError) as error:
            text.reasoning_gym_task(
                letters, dataset=dataset, options=bad_options, size=3, seed=5, max_response_length=8
            )
        assert error.value.field == field


def test_a_fingerprint_is_the_same_in_every_process(letters):
    """Addresses and the order of sets differ from process to process, so they do not count."""
    references = [
        {"words": {"a", "b"}, "made_by": object(), (1, 2): 3, "answer": answer} for answer in "xxy"
    ]
    tasks = [
        text.PromptedTask(
            letters, [text.TextProblem("a", reference)], verifiers.exact, max_response_length=8
        )
        for reference in references
    ]
    assert tasks[0].fingerprint == tasks[1].fingerprint != tasks[2].fingerprint


def test_verifiers_of_a_file_are_known_by_name():
    assert set(verifiers.MATHEMATICS) == {"exact", "number", "math_verify"}
