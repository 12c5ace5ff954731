"""A task so small that every response can be enumerated, which makes population quantities exact.

Shape letters beyond the legend of `types.py`: Y, the enumerated responses of one prompt.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.tasks import TaskError
from staleness_grpo.types import Array, Prompts

END_TOKEN = 0


@dataclasses.dataclass(frozen=True)
class EnumerableTask:
    """Rewards drawn once and for all for each of the Y possible responses to each prompt.

    For prompt i a permutation of the responses is drawn from (seed, i). Its first `difficulty * Y` responses get
    the lowest level of `reward_levels`, and the rest are dealt out over the higher levels in turn, the highest
    first: each level is attained as long as there are enough responses, the highest one always.

    With `variable_length`, token 0 ends a response and belongs to it, and a response of R other tokens is
    cut there: Y = sum_{k<=R} (V-1)^k. Otherwise Y = V^R.
    """

    vocab_size: int = 4
    max_response_length: int = 3
    num_prompts: int = 4
    variable_length: bool = True
    reward_levels: tuple[float, ...] = (0.0, 1.0)
    difficulty: float = 0.7  # share of the responses that get the lowest reward
    seed: int = 0

    def __post_init__(self):
        for field, least in (("vocab_size", 2), ("max_response_length", 1), ("num_prompts", 1)):
            if getattr(self, field) < least:
                raise TaskError(field, f"give a number >= {least}")
        if len(self.reward_levels) < 2 or list(self.reward_levels) != sorted(set(self.reward_levels)):
            raise TaskError("reward_levels", "give two or more increasing numbers")
        if not 0 <= self.difficulty < 1:
            raise TaskError("difficulty", "give a number in [0, 1)")

    @property
    def end_token(self) -> int | None:
        return END_TOKEN if self.variable_length else None

    @property
    def pad_token(self) -> int:
        return END_TOKEN  # the end token itself: no token of the vocabulary is lost to padding

    @property
    def prompt_length(self) -> int:
        """Digits of the largest prompt index in base V."""
        length = 1
        while self.vocab_size**length < self.num_prompts:
            length += 1
        return length

    @functools.cached_property
    def responses(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_YxR, mask_YxR): every possible response once, in lexicographic order, padded at the right."""
        tokens = np.array(
            list(itertools.product(range(self.vocab_size), repeat=self.max_response_length)), dtype=np.int32
        )
        if not self.variable_length:
            return tokens, np.ones(tokens.shape, dtype=bool)
        ended_before = np.cumsum(tokens == END_TOKEN, axis=-1) - (tokens == END_TOKEN) > 0
        canonical = ~np.any(ended_before & (tokens != END_TOKEN), axis=-1)  # one padding for each response
        return tokens[canonical], ~ended_before[canonical]

    @functools.cached_property
    def reward_table(self) -> np.ndarray:
        """Reward [num_prompts, Y], float32, of every response to every prompt, in the order of `responses`."""
        num_responses = len(self.responses[0])
        num_lowest = min(int(self.difficulty * num_responses), num_responses - 1)
        higher_levels = self.reward_levels[:0:-1]
        dealt = [self.reward_levels[0]] * num_lowest
        dealt += [higher_levels[i % len(higher_levels)] for i in range(num_responses - num_lowest)]
        rewards = np.empty((self.num_prompts, num_responses), dtype=np.float32)
        for index in range(self.num_prompts):
            rewards[index, np.random.default_rng([self.seed, index]).permutation(num_responses)] = dealt
        return rewards

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """The digits of the index in base V; no padding."""
        index_N = np.asarray(index_N, dtype=np.int32)
        place_P = self.vocab_size ** np.arange(self.prompt_length - 1, -1, -1)
        tokens = (index_N[:, None] // place_P % self.vocab_size).astype(np.int32)
        return Prompts(tokens_NxP=tokens, mask_NxP=np.ones(tokens.shape, dtype=bool), index_N=index_N)

    @property
    def _places(self) -> np.ndarray:
        """What each token of a response counts in its code."""
        return self.vocab_size ** np.arange(self.max_response_length - 1, -1, -1)

    def response_index(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Place in `responses` of each response; tokens and mask [..., R].

        Raises:
          ValueError: for a response that is none of them (its mask goes on after the end token, say).
        """
        tokens_YxR, mask_YxR = self.responses
        codes_Y = tokens_YxR @ self._places  # increasing, because the order is lexicographic
        codes = np.where(mask, tokens, END_TOKEN) @ self._places
        index = np.minimum(np.searchsorted(codes_Y, codes), len(codes_Y) - 1)
        if np.any(codes_Y[index] != codes) or np.any(mask_YxR[index] != mask):
            raise ValueError("a response is not among the enumerated ones: its tokens and its mask disagree")
        return index

    def rewards(self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray) -> np.ndarray:
        """Rewards [N, G], float32, looked up."""
        index_NxG = self.response_index(np.asarray(tokens_NxGxR), np.asarray(mask_NxGxR))
        return self.reward_table[np.asarray(index_N)[:, None], index_NxG]

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Rewards [N, V^R] of all sequences by their code in base V; 0 for those that are no response."""
        tokens_YxR, _ = self.responses
        rewards = np.zeros((len(index_N), self.vocab_size**self.max_response_length), np.float32)
        rewards[:, tokens_YxR @ self._places] = self.reward_table[index_N]
        return rewards

    def judge(self, key: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> jax.Array:
        """The rewards [N, G] that stand in the key; a masked token counts as the end token."""
        code_NxG = jnp.sum(jnp.where(mask_NxGxR, tokens_NxGxR, END_TOKEN) * self._places[None, None], axis=-1)
        return jnp.take_along_axis(key, code_NxG, axis=-1)

    def answer(self, index: int) -> np.ndarray:
        """The first response of the highest reward."""
        tokens_YxR, mask_YxR = self.responses
        best = np.argmax(self.reward_table[index])
        return tokens_YxR[best, mask_YxR[best]]

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(str(int(token)) for token in tokens)
