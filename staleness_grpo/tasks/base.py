"""The Task protocol: prompts by index, rewards on the host. A task has no state and no global registry."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from staleness_grpo.types import Array, Prompts


class Task(Protocol):
    """A source of prompts and a judge of responses.

    Everything is a pure function of the constructor's arguments and of the index, so that a prompt is the
    same whoever asks for it, in whatever order. Indices are any int in [0, num_prompts).
    """

    vocab_size: int  # V
    prompt_length: int  # P, the padded length of every prompt
    max_response_length: int  # R
    pad_token: int
    # Ends a response and belongs to it; a tuple: any of several; None: responses have fixed length R.
    end_token: int | tuple[int, ...] | None
    num_prompts: int

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """The prompts with these indices, left-padded."""
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """Tokens as text, for people."""
        ...


class ArrayTask(Task, Protocol):
    """A task whose rewards are a function of arrays, so that a whole training can be compiled with it."""

    def rewards(self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray) -> np.ndarray:
        """Rewards [N, G], float32, of the responses to the prompts with these indices."""
        ...

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """All that judging responses to these prompts needs, with the prompt as leading axis."""
        ...

    def judge(self, key: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """The rewards [N, G] again, from `answer_key` and traceable."""
        ...

    def answer(self, index: int) -> np.ndarray:
        """Tokens (with the end token, if there is one) of a response of highest reward."""
        ...


@runtime_checkable
class TextTask(Task, Protocol):
    """A task whose responses are judged as text, by a verifier that runs in worker processes (see `rewards`)."""

    verify: Callable[[str, Any], float]  # (response, reference) -> reward; importable by name

    def samples(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> tuple[list[str], list[Any]]:
        """(responses, references), B = N * G of each: the text of every response, and what it is compared with."""
        ...
