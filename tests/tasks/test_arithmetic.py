"""The task of sums agrees with Python's own integers and strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import make_task
from staleness_grpo.tasks.arithmetic import CORPUS_KINDS, END, PAD, ArithmeticTask
from staleness_grpo.tasks.enumerable import EnumerableTask

arithmetic_tasks = st.sampled_from(
    [
        ArithmeticTask(num_terms, num_digits)
        for num_terms in (2, 3, 4)
        for num_digits in range(1, 5)
        if num_terms * num_digits <= 9
    ]
)
FRACTIONS = (0.3, 0.4, 0.3)


def prompt_text(task, index):
    return task.decode(task.prompts(np.array([index])).tokens_NxP[0]).lstrip("_")


def responses(task, texts):
    """Returns texts as the sampler returns them, (tokens_1xGxR, mask_1xGxR), cut at R."""
    tokens = np.full((1, len(texts), task.max_response_length), PAD, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for g, text in enumerate(texts):
        symbols = [END if c == "$" else PAD if c == "_" else int(c) for c in text]
        symbols = symbols[: task.max_response_length]
        tokens[0, g, : len(symbols)] = symbols
        mask[0, g, : len(symbols)] = True
    return tokens, mask


@given(task=arithmetic_tasks, data=st.data())
def test_prompt_and_answer_agree_with_python(task, data):
    index = data.draw(st.integers(0, task.num_prompts - 1))
    text = prompt_text(task, index)
    terms = text.removesuffix("=").split("+")
    assert len(terms) == task.num_terms
    assert [str(int(term)) for term in terms] == terms  # no leading zeros
    assert int("".join(term.zfill(task.num_digits) for term in terms)) == index
    assert task.decode(task.answer(index)) == f"{sum(map(int, terms))}$"


@given(task=arithmetic_tasks)
def test_declared_lengths_are_attained(task):
    last = np.array([task.num_prompts - 1])  # all terms are 99...9
    assert task.prompts(last).mask_NxP.all()
    assert len(task.answer(task.num_prompts - 1)) == task.max_response_length
    assert task.vocab_size == 14


def test_prompts_are_left_padded():
    prompts = ArithmeticTask().prompts(np.array([5712, 3, 90]))
    assert [ArithmeticTask().decode(row) for row in prompts.tokens_NxP] == [
        "57+12=",
        "__0+3=",
        "_0+90=",
    ]
    np.testing.assert_array_equal(prompts.mask_NxP, prompts.tokens_NxP != PAD)
    np.testing.assert_array_equal(prompts.index_N, [5712, 3, 90])
    assert prompts.tokens_NxP.dtype == prompts.index_N.dtype == np.int32


def test_only_the_exact_answer_is_rewarded():
    task = ArithmeticTask()
    tokens, mask = responses(
        task, ["69$", "69", "069$", "6$", "$", "", "690$", "96$", "69_$", "70$", "69__"]
    )
    rewards = task.rewards(np.array([5712]), tokens, mask)
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, [[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])


def test_tokens_after_the_end_do_not_count():
    task = ArithmeticTask()
    tokens, mask = responses(task, ["69$"])
    tokens[~mask] = 7
    assert task.rewards(np.array([5712]), tokens, mask) == 1


@given(task=arithmetic_tasks, seed=st.integers(0, 1000))
def test_each_prompt_is_judged_by_its_own_answer(task, seed):
    index_N = np.random.default_rng(seed).integers(0, task.num_prompts, 6)
    keys = [task.decode(task.answer(index)) for index in index_N]
    tokens, mask = responses(task, keys)
    tokens_NxGxR, mask_NxGxR = np.repeat(tokens, 6, axis=0), np.repeat(mask, 6, axis=0)
    expected = [[float(answer == key) for answer in keys] for key in keys]
    np.testing.assert_array_equal(task.rewards(index_N, tokens_NxGxR, mask_NxGxR), expected)


@pytest.mark.parametrize(
    ("terms", "kind", "expected"),
    [
        ((57, 68), "correct", "125$"),
        ((57, 68), "no_carry", "15$"),
        ((57, 43), "no_carry", "90$"),
        ((57, 53), "no_carry", "0$"),
        ((57, 68), "difference", "11$"),
        ((99, 9, 5), "no_carry", "93$"),
        ((7, 68, 2), "difference", "59$"),
        ((1, 9, 1, 9), "difference", "16$"),
    ],
)
def test_corpus_written_out(terms, kind, expected):
    task = ArithmeticTask(num_terms=len(terms), num_digits=2)
    index_N = np.array([int("".join(f"{term:02}" for term in terms))])
    tokens, mask = task.corpus(index_N, kind)
    assert task.decode(tokens[0][mask[0]]) == expected
    assert (tokens[~mask] == PAD).all()


def test_corpus_batch_is_a_function_of_its_arguments():
    task = ArithmeticTask()
    prompts, tokens, mask = task.corpus_batch(3, 7, 50, FRACTIONS)
    again = task.corpus_batch(3, 7, 50, FRACTIONS)
    larger = task.corpus_batch(3, 7, 80, FRACTIONS)
    np.testing.assert_array_equal(again[0].index_N, prompts.index_N)
    np.testing.assert_array_equal(larger[0].index_N[:50], prompts.index_N)
    np.testing.assert_array_equal(larger[1][:50], tokens)
    np.testing.assert_array_equal(larger[2][:50], mask)
    for seed, step in ((4, 7), (3, 8)):
        assert (task.corpus_batch(seed, step, 50, FRACTIONS)[0].index_N != prompts.index_N).any()


def test_corpus_batch_mixes_the_kinds_in_proportion():
    task = ArithmeticTask()
    size = 20_000
    prompts, tokens, _ = task.corpus_batch(0, 0, size, FRACTIONS)
    by_kind = np.stack([task.corpus(prompts.index_N, kind)[0] for kind in CORPUS_KINDS])
    # Where the three authors differ from each other, a row shows who wrote it.
    distinct = (
        (by_kind[0] != by_kind[1]).any(-1)
        & (by_kind[0] != by_kind[2]).any(-1)
        & (by_kind[1] != by_kind[2]).any(-1)
    )
    author = (by_kind == tokens).all(axis=-1)[:, distinct]
    assert (author.sum(axis=0) == 1).all()
    assert distinct.mean() > 0.6
    # The binomial standard deviation is below 0.5 / sqrt(12,000) = 0.0046; the bound is four.
    np.testing.assert_allclose(author.mean(axis=1), FRACTIONS, atol=0.02)
    assert abs(prompts.index_N.mean() / task.num_prompts - 0.5) < 4 * 0.29 / np.sqrt(size)


@pytest.mark.parametrize("fractions", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_a_fraction_of_one_leaves_no_other_kind(fractions):
    task = ArithmeticTask()
    prompts, tokens, mask = task.corpus_batch(0, 0, 500, fractions)
    expected, expected_mask = task.corpus(prompts.index_N, CORPUS_KINDS[fractions.index(1.0)])
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(mask, expected_mask)


def test_bad_arguments_are_refused():
    for num_terms, num_digits in ((1, 2), (5, 1), (2, 0), (2, 5)):
        with pytest.raises(FieldError, match="num_terms in 2..4"):
            ArithmeticTask(num_terms, num_digits)
    for index in (-1, 10_000):
        with pytest.raises(ValueError, match="indices must be in"):
            ArithmeticTask().prompts(np.array([index]))
    with pytest.raises(ValueError, match="kind must be one of"):
        ArithmeticTask().corpus(np.array([0]), "lucky")


def test_make_task():
    fields = {"name": "arithmetic", "num_terms": 3, "num_digits": 1}
    assert make_task(fields) == ArithmeticTask(3, 1)
    fields = {"name": "enumerable", "vocab_size": 3, "reward_levels": [0.0, 0.5, 1.0]}
    enumerable = make_task(fields)
    assert isinstance(enumerable, EnumerableTask)
    assert (enumerable.vocab_size, enumerable.reward_levels) == (3, (0.0, 0.5, 1.0))
    with pytest.raises(FieldError, match="^name=chess: choose one of"):
        make_task({"name": "chess"})


def test_fields_that_the_task_lacks_or_does_not_have_are_refused():
    """The error says what fields the task has, and knows no file."""
    hint = "set or remove them; its fields are num_terms, num_digits"
    with pytest.raises(FieldError) as error:
        make_task({"name": "arithmetic", "num_words": 2})
    assert str(error.value) == f"name: the task arithmetic has no field num_words: {hint}"
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    with pytest.raises(FieldError) as error:
        make_task({"name": "stories", "rule": None, "num_digits": 1})
    assert str(error.value) == (
        "name: the task stories needs the fields rule, max_response_length and has no field "
        "num_digits: set or remove them; its fields are rule, max_response_length"
    )
