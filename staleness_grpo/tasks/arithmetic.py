"""Addition, character by character: "57+68=" -> "125", with the corpus of its supervised warm start.

Shape letter beyond the legend of `types.py`: K, the terms of a sum.
"""

import dataclasses

import numpy as np

from staleness_grpo.hashing import hash64, uniform_integers
from staleness_grpo.tasks import TaskError
from staleness_grpo.types import Array, Prompts

CHARACTERS = "0123456789+=_$"  # a token is the place of its character; the digits are themselves
PLUS, EQUALS, PAD, END = 10, 11, 12, 13
CORPUS_KINDS = ("correct", "no_carry", "difference")
_CORPUS_PROMPT, _CORPUS_KIND = 0, 1  # purposes, so that the prompt and its kind are drawn independently


@dataclasses.dataclass(frozen=True)
class ArithmeticTask:
    """Sums of `num_terms` numbers below 10^num_digits, written without leading zeros; reward 1 for the exact answer.

    The prompt's index is its terms, as digits of a number in base 10^num_digits, so that every sum is one prompt.
    """

    num_terms: int = 2
    num_digits: int = 2

    def __post_init__(self):
        if not 2 <= self.num_terms <= 4 or self.num_digits < 1 or self.num_terms * self.num_digits > 9:
            mend = "give num_terms in 2..4, num_digits >= 1 and num_terms * num_digits <= 9 (an index is an int32)"
            raise TaskError("num_digits" if 2 <= self.num_terms <= 4 else "num_terms", mend)

    vocab_size = len(CHARACTERS)
    pad_token = PAD
    end_token = END

    @property
    def num_prompts(self) -> int:
        return 10 ** (self.num_terms * self.num_digits)

    @property
    def prompt_length(self) -> int:
        """Every term at its longest, each with its '+' or '='."""
        return self.num_terms * (self.num_digits + 1)

    @property
    def max_response_length(self) -> int:
        """The digits of the largest sum and the end token."""
        return len(str(self.num_terms * (10**self.num_digits - 1))) + 1

    def terms(self, index_N: np.ndarray) -> np.ndarray:
        """The terms [N, K], int64, of these sums. Raises ValueError for an index outside [0, num_prompts)."""
        index_N = np.asarray(index_N, np.int64)
        if index_N.size and (index_N.min() < 0 or index_N.max() >= self.num_prompts):
            raise ValueError(f"indices must be in [0, {self.num_prompts}), got {index_N.min()}..{index_N.max()}")
        base = 10**self.num_digits
        return index_N[:, None] // base ** np.arange(self.num_terms - 1, -1, -1) % base

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """'a+b=' for each index, left-padded to P."""
        index_N = np.asarray(index_N, np.int32)
        terms_NxK = self.terms(index_N)
        tokens_NxP = np.full((len(index_N), self.prompt_length), PAD, np.int32)
        rows_N = np.arange(len(index_N))
        end_N = np.full(len(index_N), self.prompt_length - 1)  # written from the right: where the next symbol goes
        for k in reversed(range(self.num_terms)):
            tokens_NxP[rows_N, end_N] = EQUALS if k == self.num_terms - 1 else PLUS
            length_N = _num_digits(terms_NxK[:, k], self.num_digits)
            for place in range(self.num_digits):
                written = place < length_N
                digit_N = terms_NxK[:, k] // 10**place % 10
                tokens_NxP[rows_N[written], end_N[written] - 1 - place] = digit_N[written]
            end_N -= length_N + 1
        return Prompts(tokens_NxP=tokens_NxP, mask_NxP=tokens_NxP != PAD, index_N=index_N)

    def rewards(self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray) -> np.ndarray:
        """Rewards [N, G], float32: 1 for the answer's digits and the end token and nothing else, or 0."""
        return self.judge(self.answer_key(index_N), tokens_NxGxR, mask_NxGxR).astype(np.float32)

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """The right answers, padded: tokens [N, R], int32."""
        return self._written(self.terms(index_N).sum(axis=1))[0]

    def judge(self, key_NxR: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> Array:
        """Whether each response is its key's, [N, G]; NumPy arrays or traced ones."""
        key_Nx1xR = key_NxR[:, None]
        return (mask_NxGxR & (tokens_NxGxR == key_Nx1xR) | ~mask_NxGxR & (key_Nx1xR == PAD)).all(axis=-1)

    def answer(self, index: int) -> np.ndarray:
        """The digits of the sum, and the end token."""
        tokens_1xR, mask_1xR = self._written(self.terms(np.array([index])).sum(axis=1))
        return tokens_1xR[mask_1xR]

    def decode(self, tokens: np.ndarray) -> str:
        """The characters: '_' is padding, '$' the end token."""
        return "".join(CHARACTERS[token] for token in tokens)

    def corpus(self, index_N: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_NxR int32, mask_NxR bool): the response of one kind of author to each prompt, right-padded.

        'correct': the sum. 'no_carry': the sum of each decimal place modulo 10, so 57+68=15. 'difference': |a-b|,
        and |a-b+c|, |a-b+c-d| for more terms. The wrong ones are right now and then: 12+34 has no carry.
        """
        terms_NxK = self.terms(index_N)
        if kind == "correct":
            values_N = terms_NxK.sum(axis=1)
        elif kind == "no_carry":
            places = [10**place for place in range(self.num_digits)]
            values_N = sum(place * ((terms_NxK // place % 10).sum(axis=1) % 10) for place in places)
        elif kind == "difference":
            values_N = np.abs(terms_NxK @ np.resize([1, -1], self.num_terms))
        else:
            raise ValueError(f"kind must be one of {CORPUS_KINDS}, got {kind!r}")
        return self._written(values_N)

    def corpus_batch(
        self, seed: int, step: int, batch_size: int, fractions: tuple[float, float, float]
    ) -> tuple[Prompts, np.ndarray, np.ndarray]:
        """A batch of the mixed corpus: (prompts, tokens_BxR, mask_BxR), a function of its arguments alone.

        Each row draws its prompt uniformly and its kind, in the order of CORPUS_KINDS, with probabilities
        `fractions`, which sum to 1.
        """
        rows_B = np.arange(batch_size)
        index_B = uniform_integers(self.num_prompts, seed, _CORPUS_PROMPT, step, rows_B)
        uniform_B = hash64(seed, _CORPUS_KIND, step, rows_B) / 2**64
        # The last bound is left out: it is 1 but for rounding, and no draw may fall above it.
        kind_B = np.searchsorted(np.cumsum(fractions)[:-1], uniform_B, side="right")
        tokens_BxR = np.empty((batch_size, self.max_response_length), np.int32)
        mask_BxR = np.empty((batch_size, self.max_response_length), bool)
        for number, kind in enumerate(CORPUS_KINDS):
            chosen = kind_B == number
            tokens_BxR[chosen], mask_BxR[chosen] = self.corpus(index_B[chosen], kind)
        return self.prompts(index_B), tokens_BxR, mask_BxR

    def _written(self, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_NxR, mask_NxR): the digits of each number, the end token, and padding."""
        position_R = np.arange(self.max_response_length)
        length_Nx1 = _num_digits(values_N, self.max_response_length - 1)[:, None]
        place_NxR = 10 ** np.maximum(length_Nx1 - 1 - position_R, 0)
        tokens_NxR = np.where(position_R < length_Nx1, values_N[:, None] // place_NxR % 10, PAD)
        tokens_NxR = np.where(position_R == length_Nx1, END, tokens_NxR).astype(np.int32)
        return tokens_NxR, position_R <= length_Nx1


def _num_digits(values_N: np.ndarray, largest: int) -> np.ndarray:
    """How many digits each number has, 1 for 0; none has more than `largest`."""
    return 1 + np.searchsorted(10 ** np.arange(1, largest), values_N, side="right")
