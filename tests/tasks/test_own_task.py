"""A task of one's own: what it lacks is named, and records and checkpoints say what was run."""

import dataclasses
import functools

import numpy as np
import pytest

from staleness_grpo.config.build import build_run
from staleness_grpo.config.model_validation import check_judging
from staleness_grpo.errors import FieldError
from staleness_grpo.tasks.own import check_interface, describe
from staleness_grpo.training.checkpoint import Checkpoints
from staleness_grpo.training.loop import train
from staleness_grpo.types import Prompts
from tests.helpers.tiny import tiny_config


class Copy:
    """Asks for a response that begins with the token of the prompt."""

    vocab_size, prompt_length, max_response_length, num_prompts = 4, 1, 2, 3
    pad_token, end_token = 0, None

    def __init__(self, offset: int = 0):
        self.offset = offset

    def prompts(self, index_N):
        tokens = (np.asarray(index_N)[:, None] + self.offset).astype(np.int32)
        return Prompts(tokens, np.ones(tokens.shape, bool), np.asarray(index_N, np.int32))

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        return (tokens_NxGxR[..., 0] == np.asarray(index_N)[:, None]).astype(np.float32)

    def decode(self, tokens):
        return " ".join(map(str, tokens))


class CopyOfTheLast(Copy):
    """Judges the last token in place of the first."""

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        return (tokens_NxGxR[..., -1] == np.asarray(index_N)[:, None]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class WithFields(Copy):
    """Keeps a result, which is no part of what was run."""

    offset: int = 0

    @functools.cached_property
    def table(self):
        return np.zeros(3)


def test_the_runs_config_names_the_task_and_the_callers_is_unchanged():
    config = tiny_config(steps=2)
    run = build_run(config, Copy())
    assert config.task.name == "enumerable"
    assert run.config.task.to_dict() == describe(Copy())
    assert run.config.task.name == f"{__name__}:Copy" and len(run.config.task.digest) == 16
    assert len(list(train(run))) == 2


def test_the_digest_is_that_of_code_and_data():
    task = WithFields()
    digest = describe(task)["digest"]
    assert task.table.sum() == 0  # now it is kept in the instance
    others = describe(WithFields(1)), describe(Copy()), describe(CopyOfTheLast()), describe(Copy(1))
    digests = [digest, *(other["digest"] for other in others)]
    assert describe(task)["digest"] == digest and len(set(digests)) == len(digests)


def test_code_without_a_source_file_differs_too():
    def made_by(body):
        namespace = {"Copy": Copy, "np": np}
        exec(f"class Task(Copy):\n    def rewards(self, *batch):\n        return {body}", namespace)
        return describe(namespace["Task"]())["digest"]

    assert made_by("np.zeros(3)") == made_by("np.zeros(3)") != made_by("np.zeros(4)")


def refused(reason, hint):
    return AssertionError(f"{reason}: {hint}")


def test_another_reward_function_does_not_resume_the_run(tmp_path):
    config = tiny_config(steps=3, **{"checkpoint.save_every": 2})
    run = build_run(config, Copy())
    list(train(run, Checkpoints(tmp_path, run.config)))
    again = build_run(config, Copy())
    Checkpoints(tmp_path, again.config).restore(again, refused)
    assert again.step == 3
    other = build_run(config, CopyOfTheLast())
    with pytest.raises(AssertionError, match="another config, task or reward function made it"):
        Checkpoints(tmp_path, other.config).restore(other, refused)
    with pytest.raises(ValueError, match=r"Checkpoints\(folder, run.config\)"):
        Checkpoints(tmp_path, config).restore(run, refused)
    with pytest.raises(ValueError, match=r"Checkpoints\(folder, run.config\)"):
        next(train(build_run(config, Copy()), Checkpoints(tmp_path, config)))


def without(*members):
    """Returns a task that lacks these members."""
    kept = {name: value for name, value in vars(Copy).items() if name not in members}
    return type("Part", (), kept)()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (without("prompts", "rewards"), "this class lacks prompts, rewards: see "),
        (without("end_token"), "this class lacks end_token"),
        (type("Text", (Copy,), {"verify": len})(), "this class lacks samples"),
        (type("Task", (Copy,), {"num_prompts": 0})(), "its num_prompts is 0: give an int >= 1"),
        (type("Task", (Copy,), {"vocab_size": 4.0})(), "its vocab_size is 4.0: give an int"),
        (type("Task", (Copy,), {"pad_token": 4})(), r"token 4 is not in \[0, vocab_size=4\)"),
        (type("Task", (Copy,), {"end_token": (1, 9)})(), "token 9 is not in"),
        (
            type("Task", (Copy,), {"prompt_length": 2})(),
            r"of shape \(2, 1\): give \(2, 2",
        ),
        (Copy(offset=2), "its prompt 2 has the token 4, but vocab_size is 4: make it larger"),
    ],
)
def test_what_a_class_lacks_or_has_wrong_is_named_at_the_start(task, message):
    message = f"^task={type(task).__name__}: .*{message}"
    with pytest.raises(FieldError, match=message):
        check_interface(task)
    with pytest.raises(FieldError, match=message):
        build_run(tiny_config(), task)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (lambda *batch: np.zeros(3), r"its rewards have shape \(3,\): return one for .*\(2, 8\)"),
        (
            lambda *batch: {}["lookup"],
            r"its rewards fails with KeyError: 'lookup' \(.*line \d+\): ",
        ),
        (lambda *batch: [[1.0], [2.0, 3.0]], "its rewards gave no array of numbers: "),
    ],
)
def test_rewards_that_cannot_be_used_are_named_at_the_start(rewards, message):
    task = type("Task", (Copy,), {"rewards": rewards})()
    with pytest.raises(FieldError, match=f"^task=Task: {message}"):
        build_run(tiny_config(), task)


def traced(self, key, tokens, mask):
    return np.asarray(tokens)[..., 0] == key[:, None]


def with_branch(self, key, tokens, mask):
    return tokens[..., 0] * 1.0 if (tokens > 1).any() else tokens[..., 0] * 0.0


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"judge": traced}, "its judge fails with TracerArrayConversionError: "),
        ({"judge": with_branch}, "its judge fails with TracerBoolConversionError: "),
        (
            {"judge": lambda self, key, tokens, mask: mask},
            r"its judge gave the shape \(2, 8, 2\): give",
        ),
        (
            {"judge": lambda self, key, tokens, mask: tokens[..., 0] * 0 + 3},
            "its judge and its rewards give 3 and [01] for one response: make them the same",
        ),
        ({"answer_key": lambda self, index_N: {}[0]}, "its answer_key fails with KeyError: 0"),
        ({"decode": lambda self, tokens: tokens[9]}, "its decode fails with IndexError: "),
        ({"decode": lambda self, tokens: tokens}, r"its decode gave array.*: give a text"),
    ],
)
def test_methods_that_runs_need_later_are_tried_at_the_start(methods, message):
    judging = {
        "judge": lambda self, key, tokens, mask: tokens[..., 0] == key[:, None],
        "answer_key": lambda self, index_N: np.asarray(self.prompts(index_N).tokens_NxP)[:, 0],
    }
    task = type("Task", (Copy,), judging | methods)()
    with pytest.raises(FieldError, match=f"^task=Task: {message}"):
        check_judging(task)
    check_judging(type("Task", (Copy,), judging)())


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (lambda tokens, mask, index: {}["no"], r"its prompts fails with KeyError: 'no' \(.*line"),
        (lambda tokens, mask, index: tokens, r"its prompts\(\) gave ndarray: give .*Prompts"),
        (
            lambda tokens, mask, index: Prompts(tokens * 1.0, mask, index),
            r"its prompts\(\) gave tokens_NxP of type float\d+: give int32",
        ),
        (
            lambda tokens, mask, index: Prompts(tokens, mask * 1, index),
            r"its prompts\(\) gave mask_NxP of type int\d+: give bool",
        ),
        (
            lambda tokens, mask, index: Prompts(
                np.tile(tokens, 2), np.stack([mask[:, 0], ~mask[:, 0]], axis=1), index
            ),
            "its prompt 0 has padding at position 1, after a token: put all padding on the left",
        ),
    ],
)
def test_prompts_that_cannot_be_read_are_named_at_the_start(prompts, message):
    class Task(Copy):
        prompt_length = 2 if "position" in message else 1

        def prompts(self, index_N):
            good = super().prompts(index_N)
            return prompts(np.asarray(good.tokens_NxP), np.asarray(good.mask_NxP), good.index_N)

    with pytest.raises(FieldError, match=f"^task=Task: {message}"):
        check_interface(Task())


def test_the_responses_that_are_judged_at_the_start_are_possible_ones():
    class Strict(Copy):
        max_response_length, pad_token, end_token = 6, 0, (1, 2)
        judged = 0

        def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
            for tokens, mask in zip(
                tokens_NxGxR.reshape(-1, 6), mask_NxGxR.reshape(-1, 6), strict=True
            ):
                length = mask.sum()
                assert mask[:length].all() and not mask[length:].any()
                assert not np.isin(tokens[: length - 1], (1, 2)).any()
                assert length == 6 or tokens[length - 1] in (1, 2)
                assert (tokens[length:] == 0).all()
                Strict.judged += 1
            return np.full(tokens_NxGxR.shape[:2], np.nan)  # which a run counts and survives

    check_judging(Strict())
    assert Strict.judged == 16


def test_a_prompt_that_is_wrong_later_is_named_when_it_is_drawn():
    class Late(Copy):
        num_prompts = 50

        def prompts(self, index_N):
            tokens = np.where(np.asarray(index_N) == 25, 7, 1).astype(np.int32)[:, None]
            return Prompts(tokens, np.ones(tokens.shape, bool), np.asarray(index_N, np.int32))

    with pytest.raises(FieldError, match="Late: its prompt 25 has the token 7"):
        list(train(build_run(tiny_config(steps=60), Late())))


def test_a_forgotten_warm_start_is_one_line():
    with pytest.raises(FieldError, match="^warm_start.steps=5: the task Copy has no corpus"):
        build_run(tiny_config(**{"warm_start.steps": 5}), Copy())
