"""Asks for a number of letters: prompts differ in how long their answers are."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from staleness_grpo.types import Prompts


@dataclasses.dataclass(frozen=True)
class Counting:
    """Prompt k asks for 2^k letters and the end token. The reward is the share that is right."""

    num_prompts: int = 6

    prompt_length, pad_token, end_token, letter = 1, 0, 1, 2  # the prompts are tokens 3, 4, ...

    @property
    def vocab_size(self):
        return 3 + self.num_prompts

    @property
    def max_response_length(self):
        return 2 ** (self.num_prompts - 1) + 1

    def prompts(self, index_N):
        tokens = np.int32(index_N)[:, None] + 3
        return Prompts(tokens, np.ones(tokens.shape, bool), np.int32(index_N))

    def answer_key(self, index_N):  # what `judge` needs to know: the number of letters
        return 2 ** np.int32(index_N)

    def judge(self, key_N, tokens_NxGxR, mask_NxGxR):  # JAX traces this
        place, letters = jnp.arange(self.max_response_length)[None, None], key_N[:, None, None]
        right = jnp.where(place < letters, self.letter, self.end_token)
        is_right = (tokens_NxGxR == right) & (place <= letters) & mask_NxGxR
        return is_right.sum(-1) / jnp.maximum(mask_NxGxR.sum(-1), key_N[:, None] + 1)

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        return np.array(self.judge(self.answer_key(index_N), tokens_NxGxR, mask_NxGxR), np.float32)

    def decode(self, tokens):
        return "".join("_$a"[t] if t < 3 else f"<{2 ** (t - 3)}>" for t in map(int, tokens))
