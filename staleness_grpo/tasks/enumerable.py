"""Defines a task with so few responses that exact sums over all of them are possible."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from staleness_grpo.errors import require, require_at_least
from staleness_grpo.types import Array, Prompts

END_TOKEN = 0


@dataclasses.dataclass(frozen=True)
class EnumerableTask:
    """A task with a fixed random reward for each of the Y possible responses to each prompt.

    For prompt i, a random permutation of the responses is drawn from (seed, i). The first
    `difficulty * Y` responses in it get the lowest of `reward_levels`. The others get the higher
    levels in turn, starting with the highest. So the highest level always occurs, and all levels
    occur if there are enough responses.

    With `variable_length`, token 0 ends a response and is part of it. A response of R other tokens
    is cut there, so Y = sum_{k<=R} (V-1)^k. Without `variable_length`, Y = V^R.

    Raises:
      FieldError: a field is out of range, or `reward_levels` is not increasing.
    """

    vocab_size: int = 4
    max_response_length: int = 3
    num_prompts: int = 4
    variable_length: bool = True
    reward_levels: tuple[float, ...] = (0.0, 1.0)
    difficulty: float = 0.7  # fraction of the responses that get the lowest reward
    seed: int = 0

    def __post_init__(self):
        require_at_least(vars(self), {"vocab_size": 2, "max_response_length": 1, "num_prompts": 1})
        levels = list(self.reward_levels)
        increasing = len(levels) >= 2 and levels == sorted(set(levels))
        increasing &= all(map(math.isfinite, levels))
        require(increasing, "reward_levels", "give two or more increasing finite numbers", levels)
        in_range = 0 <= self.difficulty < 1
        require(in_range, "difficulty", "give a number in [0, 1)", self.difficulty)

    @property
    def end_token(self) -> int | None:
        """Returns token 0, or None if all responses have R tokens."""
        return END_TOKEN if self.variable_length else None

    @property
    def pad_token(self) -> int:
        """Returns the end token, so that padding needs no other token of the vocabulary."""
        return END_TOKEN

    @property
    def lowest_reward(self) -> float:
        """Returns the lowest of `reward_levels`."""
        return self.reward_levels[0]

    @property
    def prompt_length(self) -> int:
        """Returns P, the number of digits of the largest prompt index in base V."""
        length = 1
        while self.vocab_size**length < self.num_prompts:
            length += 1
        return length

    @functools.cached_property
    def responses(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens_YxR, mask_YxR) of all possible responses, right-padded.

        The responses are in lexicographic order.
        """
        tokens = np.array(
            list(itertools.product(range(self.vocab_size), repeat=self.max_response_length)),
            dtype=np.int32,
        )
        if not self.variable_length:
            return tokens, np.ones(tokens.shape, dtype=bool)
        ended_before = np.cumsum(tokens == END_TOKEN, axis=-1) - (tokens == END_TOKEN) > 0
        # Of the sequences that differ only after the end token, the one with padding there is kept.
        is_response = ~np.any(ended_before & (tokens != END_TOKEN), axis=-1)
        return tokens[is_response], ~ended_before[is_response]

    @functools.cached_property
    def reward_table(self) -> np.ndarray:
        """Returns the reward [num_prompts, Y], float32, of each response to each prompt.

        The responses have the same order as in `responses`.
        """
        num_responses = len(self.responses[0])
        num_lowest = min(int(self.difficulty * num_responses), num_responses - 1)
        higher_levels = self.reward_levels[:0:-1]
        levels = [self.reward_levels[0]] * num_lowest
        levels += [higher_levels[i % len(higher_levels)] for i in range(num_responses - num_lowest)]
        rewards = np.empty((self.num_prompts, num_responses), dtype=np.float32)
        for index in range(self.num_prompts):
            order = np.random.default_rng([self.seed, index]).permutation(num_responses)
            rewards[index, order] = levels
        return rewards

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns prompts with the digits of each index in base V, without padding."""
        index_N = np.asarray(index_N, dtype=np.int32)
        digit_values_P = self.vocab_size ** np.arange(self.prompt_length - 1, -1, -1)
        tokens = (index_N[:, None] // digit_values_P % self.vocab_size).astype(np.int32)
        return Prompts(
            tokens_NxP=tokens, mask_NxP=np.ones(tokens.shape, dtype=bool), index_N=index_N
        )

    @property
    def _digit_values(self) -> np.ndarray:
        """Returns V^(R-1), ..., V, 1: the value [R] of each digit of a response read in base V."""
        return self.vocab_size ** np.arange(self.max_response_length - 1, -1, -1)

    def response_index(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the index [...] of each response [..., R] in `responses`.

        Raises:
          ValueError: a response is not in `responses`, for example because its mask is True after
            the end token.
        """
        tokens_YxR, mask_YxR = self.responses
        codes_Y = (
            tokens_YxR @ self._digit_values
        )  # ascending, because `responses` has lexicographic order
        codes = np.where(mask, tokens, END_TOKEN) @ self._digit_values
        index = np.minimum(np.searchsorted(codes_Y, codes), len(codes_Y) - 1)
        if np.any(codes_Y[index] != codes) or np.any(mask_YxR[index] != mask):
            raise ValueError(
                "a response is not in `responses`, because its tokens and its mask disagree: "
                "give responses as the sampler returns them"
            )
        return index

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the rewards [N, G], float32, from `reward_table`."""
        index_NxG = self.response_index(np.asarray(tokens_NxGxR), np.asarray(mask_NxGxR))
        return self.reward_table[np.asarray(index_N)[:, None], index_NxG]

    def answer_key(self, index_N: np.ndarray) -> np.ndarray:
        """Returns the rewards [N, V^R], float32, of all sequences of R tokens.

        The index of a sequence is its number in base V. Sequences that are not in `responses` have
        reward 0.
        """
        tokens_YxR, _ = self.responses
        rewards = np.zeros((len(index_N), self.vocab_size**self.max_response_length), np.float32)
        rewards[:, tokens_YxR @ self._digit_values] = self.reward_table[index_N]
        return rewards

    def judge(self, key: Array, tokens_NxGxR: Array, mask_NxGxR: Array) -> jax.Array:
        """Returns the rewards [N, G] from the key. Masked tokens are replaced by the end token."""
        tokens_NxGxR = jnp.where(mask_NxGxR, tokens_NxGxR, END_TOKEN)
        code_NxG = jnp.sum(tokens_NxGxR * self._digit_values[None, None], axis=-1)
        return jnp.take_along_axis(key, code_NxG, axis=-1)

    def answer(self, index: int) -> np.ndarray:
        """Returns the tokens of the first response with the highest reward."""
        tokens_YxR, mask_YxR = self.responses
        best = np.argmax(self.reward_table[index])
        return tokens_YxR[best, mask_YxR[best]]

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the numbers of the tokens, separated by spaces."""
        return " ".join(str(int(token)) for token in tokens)
