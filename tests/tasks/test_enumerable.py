"""The enumerable task has every response once, fixed rewards, and the methods of a Task."""

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.tasks.enumerable import EnumerableTask


@pytest.mark.parametrize(("vocab_size", "length"), [(2, 1), (3, 2), (4, 3)])
def test_every_response_exactly_once(vocab_size, length):
    tokens, mask = EnumerableTask(vocab_size, length, variable_length=False).responses
    assert len({tuple(row) for row in tokens.tolist()}) == len(tokens) == vocab_size**length
    assert mask.all()

    tokens, mask = EnumerableTask(vocab_size, length, variable_length=True).responses
    texts = {tuple(row[kept]) for row, kept in zip(tokens, mask, strict=True)}
    assert len(texts) == len(tokens) == sum((vocab_size - 1) ** k for k in range(length + 1))
    for text in texts:
        assert 0 not in text[:-1]  # the end token ends a response ...
        assert text[-1] == 0 or len(text) == length  # ... and only a full one lacks it


def test_rewards_depend_on_seed_and_index_alone():
    task = EnumerableTask(num_prompts=5, reward_levels=(0.0, 0.5, 1.0), difficulty=0.5)
    tokens, mask = task.responses
    index = np.array([3, 1])
    rewards = task.rewards(index, np.stack([tokens, tokens]), np.stack([mask, mask]))
    assert rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, task.reward_table[index])
    fewer = EnumerableTask(num_prompts=4, reward_levels=(0.0, 0.5, 1.0), difficulty=0.5)
    np.testing.assert_array_equal(fewer.reward_table, task.reward_table[:4])
    other = EnumerableTask(num_prompts=5, reward_levels=(0.0, 0.5, 1.0), difficulty=0.5, seed=1)
    assert np.any(other.reward_table != task.reward_table)
    assert np.all(np.mean(task.reward_table == 0.0, axis=1) == 20 / 40)


def test_padding_is_immaterial_and_a_wrong_mask_is_refused():
    task = EnumerableTask(vocab_size=3, max_response_length=3)
    tokens, mask = np.array([[[1, 0, 2]]]), np.array([[[True, True, False]]])
    clean = np.array([[[1, 0, 0]]])
    assert task.rewards(np.array([0]), tokens, mask) == task.rewards(np.array([0]), clean, mask)
    with pytest.raises(ValueError, match="mask"):
        task.rewards(np.array([0]), clean, np.ones_like(mask))


def test_answer_attains_the_highest_reward():
    for difficulty in (0.0, 0.5, 0.99):
        task = EnumerableTask(num_prompts=3, difficulty=difficulty, reward_levels=(-1.0, 0.0, 1.0))
        for index in range(3):
            answer = task.answer(index)
            tokens = np.zeros((1, 1, 3), np.int32)
            mask = np.arange(3)[None, None] < len(answer)
            tokens[mask] = answer
            assert task.rewards(np.array([index]), tokens, mask) == 1.0
    assert task.decode(np.array([2, 1, 0])) == "2 1 0"


def test_prompts_are_the_digits_of_the_index():
    task = EnumerableTask(vocab_size=3, num_prompts=10)
    prompts = task.prompts(np.array([0, 5, 9]))
    np.testing.assert_array_equal(prompts.tokens_NxP, [[0, 0, 0], [0, 1, 2], [1, 0, 0]])
    assert prompts.mask_NxP.all()
    np.testing.assert_array_equal(prompts.index_N, [0, 5, 9])


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 1},
        {"reward_levels": (1.0,)},
        {"reward_levels": (1.0, 0.0)},
        {"difficulty": 1.0},
    ],
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(FieldError, match=f"^{next(iter(fields))}=.*: give"):
        EnumerableTask(**fields)
