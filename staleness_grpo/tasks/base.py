"""Defines the interfaces of tasks, which provide prompts by index and judge responses."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from staleness_grpo.types import Array, Prompts


class Task(Protocol):
    """A task that provides prompts and decodes responses; its subclasses judge responses.

    A task has no state. Every result is a pure function of the constructor's arguments and of the
    index, so it does not depend on the order of calls. Indices are ints in [0, num_prompts).
    """

    vocab_size: int  # V
    prompt_length: int  # P, the padded length of every prompt
    max_response_length: int  # R
    pad_token: int
    # The token that ends a response and is part of it. With a tuple, any of its tokens ends the
    # response. With None, every response has length R.
    end_token: int | tuple[int, ...] | None
    num_prompts: int

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns the prompts with these indices, left-padded."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the tokens as text that people can read."""
        ...


class ArrayTask(Task, Protocol):
    """A task whose rewards are functions of arrays. So JAX can compile a whole training."""

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the rewards [N, G], float32, of responses to the prompts with these indices."""
        ...

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Returns the data about these prompts that `judge` needs. The first axis is N."""
        ...

    def judge(self, key: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """Returns the rewards [N, G]. `key` is the result of `answer_key`. JAX can trace this."""
        ...

    def answer(self, index: int) -> np.ndarray:
        """Returns the tokens of a response with the highest reward, including any end token."""
        ...


def lowest_reward(task: Task) -> float:
    """Returns the lowest reward that a task gives: its attribute `lowest_reward`, or else 0.

    A run has collapsed if it loses half of its reward above this level.
    """
    return float(getattr(task, "lowest_reward", 0.0))


@runtime_checkable
class TextTask(Task, Protocol):
    """A task whose responses are converted to text and judged by a verifier in worker processes."""

    # (response, reference) -> reward; picklable, so that workers get it. The components of a
    # `components.WeightedSum` are recorded.
    verify: Callable[[str, Any], float]

    def samples(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> tuple[list[str], list[Any]]:
        """Returns (responses, references), B = N * G of each. `verify` judges each pair."""
        ...
