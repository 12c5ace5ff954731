"""Defines the task of addition, "57+68=" -> "125", and the corpus for its warm start."""

import dataclasses
from typing import Any

import numpy as np

from staleness_grpo.errors import require
from staleness_grpo.runtime.hashing import hash64, uniform_integers
from staleness_grpo.types import Array, Prompts

CHARACTERS = "0123456789+=_$"  # token t is character t, so digit d is token d
PLUS, EQUALS, PAD, END = 10, 11, 12, 13
CORPUS_KINDS = ("correct", "no_carry", "difference")
# Keys for the two random draws of a row, so that its prompt and its kind are independent.
_PROMPT_DRAW, _KIND_DRAW = 0, 1


@dataclasses.dataclass(frozen=True)
class ArithmeticTask:
    """A task that asks for the sum of `num_terms` numbers below 10^num_digits.

    The reward is 1 for the exact answer, else 0. Numbers are written without leading zeros. The
    terms of a prompt are the digits of its index in base 10^num_digits. So every combination of
    terms is exactly one prompt.

    Raises:
      FieldError: `num_terms` or `num_digits` is out of range.
    """

    num_terms: int = 2
    num_digits: int = 2

    def __post_init__(self):
        hint = (
            "give num_terms in 2..4, num_digits >= 1 and num_terms * num_digits <= 9 "
            "(an index is an int32)"
        )
        require(2 <= self.num_terms <= 4, "num_terms", hint, self.num_terms)
        digits_fit = self.num_digits >= 1 and self.num_terms * self.num_digits <= 9
        require(digits_fit, "num_digits", hint, self.num_digits)

    vocab_size = len(CHARACTERS)
    pad_token = PAD
    end_token = END

    @property
    def num_prompts(self) -> int:
        """Returns the number of different combinations of terms."""
        return 10 ** (self.num_terms * self.num_digits)

    @property
    def prompt_length(self) -> int:
        """Returns P: for each term, `num_digits` digits and a '+' or '='."""
        return self.num_terms * (self.num_digits + 1)

    @property
    def max_response_length(self) -> int:
        """Returns R: the number of digits of the largest sum, plus 1 for the end token."""
        return len(str(self.num_terms * (10**self.num_digits - 1))) + 1

    def terms(self, index_N: Array) -> np.ndarray:
        """Returns the terms [N, A], int64, of the prompts with these indices.

        Raises:
          ValueError: an index is outside [0, num_prompts).
        """
        index_N = np.asarray(index_N, np.int64)
        if index_N.size and (index_N.min() < 0 or index_N.max() >= self.num_prompts):
            given = f"{index_N.min()}..{index_N.max()}"
            raise ValueError(f"indices must be in [0, {self.num_prompts}), got {given}")
        base = 10**self.num_digits
        return index_N[:, None] // base ** np.arange(self.num_terms - 1, -1, -1) % base

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns the prompt 'a+b=' of each index, left-padded to P tokens."""
        index_N = np.asarray(index_N, np.int32)
        terms_NxA = self.terms(index_N)
        tokens_NxP = np.full((len(index_N), self.prompt_length), PAD, np.int32)
        rows_N = np.arange(len(index_N))
        # Prompts are written from right to left. The next '+' or '=' goes to column end_N.
        end_N = np.full(len(index_N), self.prompt_length - 1)
        for a in reversed(range(self.num_terms)):
            tokens_NxP[rows_N, end_N] = EQUALS if a == self.num_terms - 1 else PLUS
            length_N = _num_digits(terms_NxA[:, a], self.num_digits)
            for place in range(self.num_digits):
                has_digit_N = place < length_N
                digit_N = terms_NxA[:, a] // 10**place % 10
                columns = end_N[has_digit_N] - 1 - place
                tokens_NxP[rows_N[has_digit_N], columns] = digit_N[has_digit_N]
            end_N -= length_N + 1
        return Prompts(tokens_NxP=tokens_NxP, mask_NxP=tokens_NxP != PAD, index_N=index_N)

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the rewards [N, G], float32: 1 for the digits of the sum and the end token."""
        judged_NxG = self.judge(self.answer_key(index_N), tokens_NxGxR, mask_NxGxR)
        return np.asarray(judged_NxG, np.float32)

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Returns the tokens [N, R], int32, of the correct answers, right-padded."""
        return self._answer_tokens(self.terms(index_N).sum(axis=1))[0]

    def judge(self, key_NxR: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """Returns whether each response is the correct answer, bool [N, G].

        The arrays may be NumPy's or traced by JAX.
        """
        key_Nx1xR = key_NxR[:, None]
        # Any, because the type stubs of NumPy and JAX disagree about the return type of `all`.
        same: Any = mask_NxGxR & (tokens_NxGxR == key_Nx1xR) | ~mask_NxGxR & (key_Nx1xR == PAD)
        return same.all(axis=-1)

    def answer(self, index: int) -> np.ndarray:
        """Returns the tokens of the correct answer: the digits of the sum and the end token."""
        tokens_1xR, mask_1xR = self._answer_tokens(self.terms(np.array([index])).sum(axis=1))
        return tokens_1xR[mask_1xR]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the characters of the tokens. '_' is padding and '$' is the end token."""
        return "".join(CHARACTERS[token] for token in tokens)

    def corpus(self, index_N: Array, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the response to each prompt that an author of this kind would write.

        The kinds are:
          'correct': the sum.
          'no_carry': each decimal place is summed modulo 10, so 57+68=15. The result is correct if
            no place has a carry, as in 12+34.
          'difference': |a-b| with two terms, |a-b+c| with three and |a-b+c-d| with four.

        Returns:
          (tokens_NxR int32, mask_NxR bool), right-padded.

        Raises:
          ValueError: `kind` is not one of CORPUS_KINDS.
        """
        terms_NxA = self.terms(index_N)
        if kind == "correct":
            values_N = terms_NxA.sum(axis=1)
        elif kind == "no_carry":
            places = [10**place for place in range(self.num_digits)]
            values_N = sum(place * ((terms_NxA // place % 10).sum(axis=1) % 10) for place in places)
        elif kind == "difference":
            values_N = np.abs(terms_NxA @ np.resize([1, -1], self.num_terms))
        else:
            raise ValueError(f"kind must be one of {CORPUS_KINDS}, got {kind!r}")
        return self._answer_tokens(values_N)

    def corpus_batch(
        self, seed: int, step: int, batch_size: int, fractions: tuple[float, float, float]
    ) -> tuple[Prompts, np.ndarray, np.ndarray]:
        """Returns a random batch of the mixed corpus, as a function of the arguments only.

        Each row draws its prompt uniformly, and its kind with the probabilities `fractions`.

        Args:
          seed, step: the keys of the random draws.
          batch_size: B.
          fractions: the probabilities of CORPUS_KINDS, in that order; they sum to 1.

        Returns:
          (prompts, tokens_BxR int32, mask_BxR bool).
        """
        rows_B = np.arange(batch_size)
        index_B = uniform_integers(self.num_prompts, seed, _PROMPT_DRAW, step, rows_B)
        uniform_B = hash64(seed, _KIND_DRAW, step, rows_B) / 2**64
        # The last bound is left out. It should be 1, but rounding may make it smaller than a draw.
        kind_B = np.searchsorted(np.cumsum(fractions)[:-1], uniform_B, side="right")
        tokens_BxR = np.empty((batch_size, self.max_response_length), np.int32)
        mask_BxR = np.empty((batch_size, self.max_response_length), bool)
        for kind_index, kind in enumerate(CORPUS_KINDS):
            has_kind_B = kind_B == kind_index
            tokens_BxR[has_kind_B], mask_BxR[has_kind_B] = self.corpus(index_B[has_kind_B], kind)
        return self.prompts(index_B), tokens_BxR, mask_BxR

    def _answer_tokens(self, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens_NxR, mask_NxR): each number's digits, the end token and the padding."""
        position_R = np.arange(self.max_response_length)
        length_Nx1 = _num_digits(values_N, self.max_response_length - 1)[:, None]
        place_NxR = 10 ** np.maximum(length_Nx1 - 1 - position_R, 0)
        tokens_NxR = np.where(position_R < length_Nx1, values_N[:, None] // place_NxR % 10, PAD)
        tokens_NxR = np.where(position_R == length_Nx1, END, tokens_NxR).astype(np.int32)
        return tokens_NxR, position_R <= length_Nx1


def _num_digits(values_N: np.ndarray, max_digits: int) -> np.ndarray:
    """Returns the number of digits of each value, at most `max_digits`. 0 has one digit."""
    return 1 + np.searchsorted(10 ** np.arange(1, max_digits), values_N, side="right")
