"""Defines the task of the benchmarks: prompts of random tokens, with a given shape."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.config import validation
from staleness_grpo.errors import FieldError, require
from staleness_grpo.policy.configured import make_decoder
from staleness_grpo.runtime.hashing import uniform_integers
from staleness_grpo.types import Prompts

BENCHMARK_FIELDS = ("vocab_size", "prompt_length", "max_response_length")


@dataclasses.dataclass(eq=False)
class RandomTokens:
    """A Task whose prompts are random tokens, with rewards that differ between responses.

    Prompts have different lengths. Without an end token all responses have full length, so that
    every batch takes the same work.
    """

    vocab_size: int
    prompt_length: int
    max_response_length: int
    end_token: int | tuple[int, ...] | None = None
    pad_token: int = 0
    num_prompts: int = 1 << 20

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns left-padded prompts of 1 to P tokens.

        The lengths and the tokens are hashes of the index.
        """
        positions = np.arange(self.prompt_length)
        length_N = 1 + uniform_integers(self.prompt_length, 0, index_N)
        mask_NxP = positions >= self.prompt_length - length_N[:, None]
        tokens_NxP = uniform_integers(self.vocab_size, 1, np.asarray(index_N)[:, None], positions)
        return Prompts(
            np.where(mask_NxP, tokens_NxP, 0).astype(np.int32),
            mask_NxP,
            np.asarray(index_N, np.int32),
        )

    def rewards(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> np.ndarray:
        """Returns the share of a response's tokens that are below V / 2: [N, G], float32."""
        return (tokens_NxGxR < self.vocab_size // 2).mean(axis=-1, dtype="float32")

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the token numbers, separated by spaces."""
        return " ".join(map(str, tokens))


def validate_for(config: ConfigDict, num_devices: int, platform: str | None = None) -> None:
    """Raises FieldError if a training on `RandomTokens` with `config.benchmark` cannot be run.

    Args:
      config: a training's config with a section `benchmark`. The section `task` is ignored.
      num_devices: as in `validation.validate`.
      platform: as in `validation.validate`.

    Raises:
      FieldError: names the first field with a wrong value, and the value.
    """
    validation.validate_without_task(config, num_devices, platform)
    for name in BENCHMARK_FIELDS:
        size = config.benchmark.get(name)
        if not isinstance(size, int) or size < 1:
            raise FieldError(f"benchmark.{name}", "give a whole number >= 1", size)
    hint = "this measures the decoder only: leave the flag out"
    require(config.policy.name is None, "policy.name", hint, config.policy.name)
    vocab_size, chunks = config.benchmark.vocab_size, config.policy.vocab_chunks
    if config.policy.checkpoint is not None:
        # A token outside the policy's vocabulary would make every loss NaN.
        policy_vocab_size = make_decoder(config.policy, vocab_size).config.vocab_size
        if policy_vocab_size != vocab_size:
            hint = f"policy.checkpoint has {policy_vocab_size} tokens: give {policy_vocab_size}"
            raise FieldError("benchmark.vocab_size", hint, vocab_size)
    if vocab_size % chunks:
        hint = f"give a divisor of benchmark.vocab_size={vocab_size}"
        raise FieldError("policy.vocab_chunks", hint, chunks)
