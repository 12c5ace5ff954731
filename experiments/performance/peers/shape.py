# mypy: ignore-errors
# The line above: the peers' packages are installed in environments of their own.
"""Has the benchmark's shape and a tokenizer, for the scripts that time peers.

- The shape is that of experiments/configs/benchmark.py: 8 prompts, 8 responses to each.
- Every prompt has 16 tokens, and every response 32. Each script checks both.
- The tokenizer has an end token that is outside the model's vocabulary, so no response ends early.
- Each script imports only this file beside it, needs no network, and writes to a temporary folder
  alone.
"""

NUM_PROMPTS, GROUP_SIZE = 8, 8
PROMPT_LENGTH, RESPONSE_LENGTH = 16, 32
VOCAB_SIZE = 512


def make_tokenizer():
    """Returns a tokenizer whose tokens are the numbers 0 to 511, with spaces between them."""
    import tokenizers
    import transformers

    words = [*map(str, range(VOCAB_SIZE)), "<pad>", "<end>"]
    model = tokenizers.models.WordLevel({word: token for token, word in enumerate(words)}, "<end>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
