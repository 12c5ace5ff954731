"""Asks for the parity of some bits: 1 if an odd number of them is 1, and 0 otherwise."""

import dataclasses

import numpy as np

from staleness_grpo.types import Prompts


@dataclasses.dataclass(frozen=True)
class Parity:
    """A task that is judged on arrays. So it can be swept, in compiled programs."""

    num_bits: int = 4

    vocab_size, pad_token, end_token, max_response_length = 2, 0, None, 1

    @property
    def num_prompts(self):
        return 2**self.num_bits

    @property
    def prompt_length(self):
        return self.num_bits

    def prompts(self, index_N):
        bits = np.asarray(index_N)[:, None] >> np.arange(self.num_bits) & 1
        return Prompts(bits.astype(np.int32), np.ones(bits.shape, bool), np.int32(index_N))

    def answer_key(self, index_N):  # what `judge` needs to know
        return self.prompts(index_N).tokens_NxP.sum(axis=1) % 2

    def judge(self, key_N, tokens_NxGxR, mask_NxGxR):  # JAX traces this
        return tokens_NxGxR[..., 0] == key_N[:, None]

    def rewards(self, index_N, tokens_NxGxR, mask_NxGxR):
        return self.judge(self.answer_key(index_N), tokens_NxGxR, mask_NxGxR).astype(np.float32)

    def decode(self, tokens):
        return "".join(map(str, tokens))
