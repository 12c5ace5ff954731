"""Writes a tokenizer of single bytes as the files of a model folder; tokens 0, 1, 2 are special."""

import json
import pathlib

import tokenizers


def write(folder: pathlib.Path, chat_template: str | None = None) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    The latter names two stop tokens.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token={"content": "</s>"},
        pad_token="<pad>",
    ) | ({} if chat_template is None else {"chat_template": chat_template})
    (folder / "tokenizer_config.json").write_text(json.dumps(texts))
    (folder / "generation_config.json").write_text(json.dumps(dict(eos_token_id=[1, 5])))
