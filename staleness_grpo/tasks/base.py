"""Defines what a task is: prompts by index, rewards on the host, and no state."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from staleness_grpo.types import Array, Prompts


class Task(Protocol):
    """A source of prompts and a judge of responses.

    Everything is a pure function of the constructor's arguments and of the index. So a prompt does
    not depend on who asks for it, or in which order. Indices are ints in [0, num_prompts).
    """

    vocab_size: int  # V
    prompt_length: int  # P, the padded length of every prompt
    max_response_length: int  # R
    pad_token: int
    # Ends a response and belongs to it. A tuple: any of several tokens. None: every response has
    # length R.
    end_token: int | tuple[int, ...] | None
    num_prompts: int

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns the prompts with these indices, left-padded."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Returns tokens as text for people."""
        ...


class ArrayTask(Task, Protocol):
    """A task whose rewards are a function of arrays, so that a whole training can be compiled."""

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the rewards [N, G], float32, of responses to the prompts with these indices."""
        ...

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Returns all that `judge` needs to know of these prompts; the prompt is the first axis."""
        ...

    def judge(self, key: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """Computes the rewards [N, G] from `answer_key` with operations that JAX can trace."""
        ...

    def answer(self, index: int) -> np.ndarray:
        """Returns a response of highest reward: its tokens, with the end token if there is one."""
        ...


@runtime_checkable
class TextTask(Task, Protocol):
    """A task whose responses are judged as text, by a verifier in worker processes."""

    verify: Callable[[str, Any], float]  # (response, reference) -> reward; importable by name

    def samples(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> tuple[list[str], list[Any]]:
        """Returns (responses, references), B = N * G of each, which `verify` takes in pairs."""
        ...
