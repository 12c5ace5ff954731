"""Prompts of a file: lists of messages, a limit on their length, arguments of the template."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FieldError

pytest.importorskip("tokenizers", reason="the extra hf is not installed")
from staleness_grpo.tasks import text  # noqa: E402
from tests.helpers.byte_model import problems_file, text_config  # noqa: E402

MESSAGES = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
]
SYSTEM = {"role": "system", "content": "Count."}


def jsonl(letters, path, **fields):
    defaults: dict[str, Any] = dict(path=str(path), verifier="number", max_response_length=8)
    return text.jsonl_task(letters, **(defaults | fields))


def asked(task):
    """Returns the text of each prompt."""
    tokens = task.prompts(np.arange(task.num_prompts)).tokens_NxP
    return [task.decode(row) for row in tokens]


def test_messages_are_asked_in_the_template_of_the_chat(letters, tmp_path):
    lines = [{"prompt": MESSAGES, "answer": 4}, {"prompt": "3+3?", "answer": "6"}]
    path = problems_file(tmp_path, *lines)
    conversation = "[user]1+1?[assistant]2[user]2+2?{}[assistant]"
    task = jsonl(letters, path, chat=True)
    assert asked(task) == [conversation.format(""), "[user]3+3?[assistant]"]
    # The text around a prompt is put around the last message, and the system's goes first.
    task = jsonl(letters, path, chat=True, prompt="{prompt} Box it.", system="Add.")
    assert asked(task) == [
        "[system]Add." + conversation.format(" Box it."),
        "[system]Add.[user]3+3? Box it.[assistant]",
    ]


def test_messages_need_a_chat_and_have_one_system_message(letters, tmp_path):
    lines = [{"prompt": "a", "answer": 4}, {"prompt": [SYSTEM, *MESSAGES], "answer": 4}]
    path = problems_file(tmp_path, *lines)
    with pytest.raises(FieldError, match="^chat=False: .*line 2 is a list of messages.*set chat"):
        jsonl(letters, path)
    with pytest.raises(FieldError, match="^system=Add.: .*line 2 has a system message of its own"):
        jsonl(letters, path, chat=True, system="Add.")
    assert asked(jsonl(letters, path, chat=True))[1].startswith("[system]Count.[user]1+1?")


def test_long_prompts_are_refused_or_dropped(letters, tmp_path):
    """The texts have 1, 5 and 3 letters, and each prompt one first token more."""
    lines = [{"prompt": p, "answer": len(p)} for p in ("a", "bbbbb", "ccc")]
    path = problems_file(tmp_path, *lines)
    with pytest.raises(
        FieldError,
        match="^max_prompt_length=4: 1 of 3 prompts are longer, up to that of line 2 with 6 "
        "tokens: give at least 6, or too_long=drop",
    ):
        jsonl(letters, path, max_prompt_length=4)
    task = jsonl(letters, path, max_prompt_length=4, too_long="drop")
    assert (task.num_prompts, task.num_dropped, task.prompt_length) == (2, 1, 4)
    assert asked(task) == ["a", "ccc"] and task.longest_prompt == "line 3"
    empty = np.zeros((2, 1, 8), int)
    assert task.samples(np.array([1, 0]), empty, empty > 0)[1] == ["3", "1"]
    # The fingerprint is that of a file with the problems that remain.
    remaining = jsonl(letters, problems_file(tmp_path, lines[0], lines[2]))
    assert task.fingerprint == remaining.fingerprint and remaining.num_dropped == 0
    whole = jsonl(letters, problems_file(tmp_path, *lines), max_prompt_length=6)
    assert (whole.num_prompts, whole.num_dropped) == (3, 0)
    assert whole.fingerprint == jsonl(letters, path).fingerprint != task.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(max_prompt_length=0), "^max_prompt_length=0: give a number >= 1"),
        (dict(too_long="drop"), "^too_long=drop: it needs max_prompt_length"),
        (dict(max_prompt_length=9, too_long="cut"), "^too_long=cut: choose one of refuse, drop"),
        (
            dict(max_prompt_length=1, too_long="drop"),
            "^max_prompt_length=1: all prompts are longer: give at least 2",
        ),
    ],
)
def test_limits_that_cannot_be_used_are_refused(fields, message, letters, tmp_path):
    path = problems_file(tmp_path, *({"prompt": p, "answer": 1} for p in ("a", "bb")))
    with pytest.raises(FieldError, match=message):
        jsonl(letters, path, **fields)


def test_a_run_says_once_how_many_problems_are_dropped(folder, tmp_path, capfd):
    path = problems_file(tmp_path, *({"prompt": p, "answer": 1} for p in ("a", "bb", "cccc")))
    config = text_config(folder)
    config.task = ConfigDict(
        dict(name="jsonl", path=str(path), verifier="number", max_response_length=6)
        | dict(max_prompt_length=2, too_long="drop")
    )
    build_run(config).close()
    reason = "are left out: their prompts have more than task.max_prompt_length=2"
    line = f"2 of 3 problems of {path} {reason}"
    assert capfd.readouterr().err.count(line) == 1
    (tmp_path / "other").mkdir()
    other = problems_file(tmp_path / "other", *({"prompt": p, "answer": 1} for p in ("c", "dddd")))
    config.heldout.update(dict(every=1, path=str(other)))
    build_run(config).close()
    errors = capfd.readouterr().err
    assert line in errors and f"1 of 2 problems of {other} {reason}" in errors
    config.task.max_prompt_length = 5
    build_run(config).close()
    assert "left out" not in capfd.readouterr().err


THINKING = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if date is not defined %}{% set date = strftime_now('%d') %}{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}[no thoughts]{% endif %}"
    "{% if add_generation_prompt %}[{{ date }}]{% endif %}"
)


def test_arguments_reach_the_chat_template(letters, tmp_path):
    thinking = dataclasses.replace(letters, chat_template=THINKING)
    assert thinking.template_variables() == ["date", "enable_thinking"]
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    for arguments, expected in (
        (None, "1+1?[26]"),
        (dict(enable_thinking=False), "1+1?[no thoughts][26]"),
        (dict(enable_thinking=True, date="today"), "1+1?[today]"),
        (ConfigDict(dict(enable_thinking=False, date=None)), "1+1?[no thoughts][26]"),
    ):
        task = jsonl(thinking, path, chat=True, template_arguments=arguments)
        assert asked(task) == [expected]


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        (
            dict(enable_thinkin=False),
            {},
            "^template_arguments.enable_thinkin=False: the checkpoint's chat template does not use "
            "it: it uses date, enable_thinking",
        ),
        (dict(messages=[]), {}, "^template_arguments.messages="),
        (dict(bos_token="x"), {}, "^template_arguments.bos_token="),
        (dict(add_generation_prompt=False), {}, "^template_arguments.add_generation_prompt="),
        (dict(strftime_now=1), {}, "^template_arguments.strftime_now="),
        (
            dict(enable_thinking=False),
            dict(chat=False),
            "^template_arguments.enable_thinking=False: it needs chat=True",
        ),
        ("enable_thinking=False", {}, "^template_arguments=enable_thinking=False: give a dict"),
    ],
)
def test_arguments_that_the_template_does_not_use_are_refused(
    arguments, fields, message, letters, tmp_path
):
    thinking = dataclasses.replace(letters, chat_template=THINKING)
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(FieldError, match=message):
        jsonl(thinking, path, **(dict(chat=True, template_arguments=arguments) | fields))


@pytest.mark.parametrize("template", [None, "{% if %}"])
def test_arguments_of_a_template_that_cannot_be_read_are_refused(template, letters, tmp_path):
    broken = dataclasses.replace(letters, chat_template=template)
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    with pytest.raises(
        FieldError, match="^chat: the (checkpoint has no chat )?template|^chat: the"
    ):
        jsonl(broken, path, chat=True, template_arguments=dict(enable_thinking=False))


def test_a_wrong_field_is_named_as_its_flag(folder, tmp_path):
    path = problems_file(tmp_path, {"prompt": "1+1?", "answer": "2"})
    config = text_config(folder)
    config.task = ConfigDict(
        dict(name="jsonl", path=str(path), verifier="number", max_response_length=6, chat=True)
        | dict(template_arguments=dict(enable_thinking=False))
    )
    with pytest.raises(FieldError, match="^task.template_arguments.enable_thinking=False: .*none"):
        validation.validate(config, 1)
