"""Defines addition, character by character: "57+68=" -> "125", and its warm start's corpus."""

import dataclasses
from typing import Any

import numpy as np

from staleness_grpo.errors import require
from staleness_grpo.runtime.hashing import hash64, uniform_integers
from staleness_grpo.types import Array, Prompts

CHARACTERS = "0123456789+=_$"  # token t is character t, so a digit is its own token
PLUS, EQUALS, PAD, END = 10, 11, 12, 13
CORPUS_KINDS = ("correct", "no_carry", "difference")
# Purposes of random draws, so that a prompt and its kind are independent.
_CORPUS_PROMPT, _CORPUS_KIND = 0, 1


@dataclasses.dataclass(frozen=True)
class ArithmeticTask:
    """A task of sums: `num_terms` numbers below 10^num_digits; reward 1 for the exact answer.

    Numbers have no leading zeros. The index of a prompt has its terms as digits in base
    10^num_digits, so that every sum is one prompt.

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
        """Returns the number of different sums."""
        return 10 ** (self.num_terms * self.num_digits)

    @property
    def prompt_length(self) -> int:
        """Returns P: every term at its longest, each with its '+' or '='."""
        return self.num_terms * (self.num_digits + 1)

    @property
    def max_response_length(self) -> int:
        """Returns R: the digits of the largest sum and the end token."""
        return len(str(self.num_terms * (10**self.num_digits - 1))) + 1

    def terms(self, index_N: Array) -> np.ndarray:
        """Returns the terms [N, A], int64, of the sums with these indices.

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
        """Returns 'a+b=' for each index, left-padded to P."""
        index_N = np.asarray(index_N, np.int32)
        terms_NxA = self.terms(index_N)
        tokens_NxP = np.full((len(index_N), self.prompt_length), PAD, np.int32)
        rows_N = np.arange(len(index_N))
        # Prompts are written from the right; the next symbol goes to column end_N.
        end_N = np.full(len(index_N), self.prompt_length - 1)
        for a in reversed(range(self.num_terms)):
            tokens_NxP[rows_N, end_N] = EQUALS if a == self.num_terms - 1 else PLUS
            length_N = _num_digits(terms_NxA[:, a], self.num_digits)
            for place in range(self.num_digits):
                written_N = place < length_N
                digit_N = terms_NxA[:, a] // 10**place % 10
                tokens_NxP[rows_N[written_N], end_N[written_N] - 1 - place] = digit_N[written_N]
            end_N -= length_N + 1
        return Prompts(tokens_NxP=tokens_NxP, mask_NxP=tokens_NxP != PAD, index_N=index_N)

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the rewards [N, G], float32: 1 for the sum's digits and the end token, else 0."""
        judged_NxG = self.judge(self.answer_key(index_N), tokens_NxGxR, mask_NxGxR)
        return np.asarray(judged_NxG, np.float32)

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Returns the tokens [N, R], int32, of the right answers, padded."""
        return self._written(self.terms(index_N).sum(axis=1))[0]

    def judge(self, key_NxR: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """Returns whether each response is the answer of its key, bool [N, G].

        The arrays may be NumPy's or traced by JAX.
        """
        key_Nx1xR = key_NxR[:, None]
        # Any, because the stubs of NumPy and JAX do not agree on what `all` returns.
        same: Any = mask_NxGxR & (tokens_NxGxR == key_Nx1xR) | ~mask_NxGxR & (key_Nx1xR == PAD)
        return same.all(axis=-1)

    def answer(self, index: int) -> np.ndarray:
        """Returns the digits of the sum and the end token."""
        tokens_1xR, mask_1xR = self._written(self.terms(np.array([index])).sum(axis=1))
        return tokens_1xR[mask_1xR]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the characters; '_' is padding and '$' the end token."""
        return "".join(CHARACTERS[token] for token in tokens)

    def corpus(self, index_N: Array, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes the response of one kind of author to each prompt.

        The kinds are:
          'correct': the sum.
          'no_carry': the sum of each decimal place modulo 10, so 57+68=15. It is right where
            nothing carries, as in 12+34.
          'difference': |a-b|, and |a-b+c| or |a-b+c-d| with more terms.

        Returns:
          (tokens_NxR int32, mask_NxR bool), right-padded.

        Raises:
          ValueError: there is no such kind.
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
        return self._written(values_N)

    def corpus_batch(
        self, seed: int, step: int, batch_size: int, fractions: tuple[float, float, float]
    ) -> tuple[Prompts, np.ndarray, np.ndarray]:
        """Draws a batch of the mixed corpus; the batch is a function of the arguments alone.

        Each row draws its prompt uniformly, and its kind with the probabilities `fractions`.

        Args:
          seed, step: the keys of the random draws.
          batch_size: B.
          fractions: the probabilities of CORPUS_KINDS, in that order; they sum to 1.

        Returns:
          (prompts, tokens_BxR int32, mask_BxR bool).
        """
        rows_B = np.arange(batch_size)
        index_B = uniform_integers(self.num_prompts, seed, _CORPUS_PROMPT, step, rows_B)
        uniform_B = hash64(seed, _CORPUS_KIND, step, rows_B) / 2**64
        # The last bound is left out: rounding may put it below 1, and no draw may lie above it.
        kind_B = np.searchsorted(np.cumsum(fractions)[:-1], uniform_B, side="right")
        tokens_BxR = np.empty((batch_size, self.max_response_length), np.int32)
        mask_BxR = np.empty((batch_size, self.max_response_length), bool)
        for number, kind in enumerate(CORPUS_KINDS):
            chosen = kind_B == number
            tokens_BxR[chosen], mask_BxR[chosen] = self.corpus(index_B[chosen], kind)
        return self.prompts(index_B), tokens_BxR, mask_BxR

    def _written(self, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens_NxR, mask_NxR): the digits of each number, the end token, padding."""
        position_R = np.arange(self.max_response_length)
        length_Nx1 = _num_digits(values_N, self.max_response_length - 1)[:, None]
        place_NxR = 10 ** np.maximum(length_Nx1 - 1 - position_R, 0)
        tokens_NxR = np.where(position_R < length_Nx1, values_N[:, None] // place_NxR % 10, PAD)
        tokens_NxR = np.where(position_R == length_Nx1, END, tokens_NxR).astype(np.int32)
        return tokens_NxR, position_R <= length_Nx1


def _num_digits(values_N: np.ndarray, largest: int) -> np.ndarray:
    """Counts the digits of each number, 1 for 0; no number has more than `largest` digits."""
    return 1 + np.searchsorted(10 ** np.arange(1, largest), values_N, side="right")
