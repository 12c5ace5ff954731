"""Adds the tokens that other files of a model folder name, and that tokenizer.json may not have.

The rules are those of the library transformers, version 5. They decide which files count, in which
order tokens are added, and so which id each of them gets.
"""

import dataclasses
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

from staleness_grpo.policy.huggingface.config import ModelFolderError, read_json

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """Describes a token that a file names."""

    text: str
    flags: Mapping[str, bool]  # of FLAGS; the library `tokenizers` has defaults for the others
    number: int | None = None  # None if the file does not say it


@dataclasses.dataclass(frozen=True)
class NamedTokens:
    """Holds the tokens that the files of a folder name, besides those of tokenizer.json."""

    added: tuple[AddedToken, ...]  # in the order in which a tokenizer gets them
    special: dict[str, str]  # name of SPECIAL_TOKENS -> text, for the chat template
    source: str  # the file that states numbers


def read(folder: pathlib.Path) -> NamedTokens:
    """Reads tokenizer_config.json, special_tokens_map.json and added_tokens.json, if they exist.

    If tokenizer_config.json has `added_tokens_decoder`, the other two files do not count. Otherwise
    special_tokens_map.json comes before tokenizer_config.json.

    Raises:
      ModelFolderError: a file cannot be read, or an entry has not the form of a token.
    """
    source = "tokenizer_config.json"
    settings = _read_if_present(folder / source)
    has_decoder = "added_tokens_decoder" in settings
    if not has_decoder:
        settings |= _read_if_present(folder / "special_tokens_map.json")
    special, unnumbered = _special_tokens(settings, folder / source)
    texts = {token.text for token in unnumbered}
    if has_decoder:
        numbered = [
            AddedToken(entry["content"], _flags(entry), int(number))
            for number, entry in _decoder_entries(folder / source, settings)
        ]
    else:
        source = "added_tokens.json"
        numbered = [
            AddedToken(text, {"normalized": text not in texts}, number)
            for text, number in _numbers_by_text(folder / source)
        ]
    numbered = [
        dataclasses.replace(token, flags={**token.flags, "special": True})
        if token.text in texts
        else token
        for token in sorted(numbered, key=operator.attrgetter("number"))
    ]
    return NamedTokens((*numbered, *unnumbered), special, source)


def add(tokenizer: Any, named: NamedTokens, folder: pathlib.Path) -> None:
    """Adds the named tokens that a `tokenizers.Tokenizer` lacks. The library numbers them.

    Raises:
      ModelFolderError: a token gets another number than the folder's file states.
    """
    import tokenizers

    for token in named.added:
        tokenizer.add_tokens([tokenizers.AddedToken(token.text, **token.flags)])
    for token in named.added:
        number = tokenizer.token_to_id(token.text)
        if token.number not in (None, number):
            raise ModelFolderError(
                f"{folder / named.source} says that {token.text!r} is token {token.number}, but by "
                f"tokenizer.json it is token {number}: copy both files from the same checkpoint"
            )


def _special_tokens(
    settings: Mapping[str, Any], path: pathlib.Path
) -> tuple[dict[str, str], list[AddedToken]]:
    """Returns the texts of SPECIAL_TOKENS by name, and all special tokens in their order.

    Raises:
      ModelFolderError: a value is no token. The message names the file `path`.
    """
    named = {name: settings[name] for name in SPECIAL_TOKENS if name in settings}
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ModelFolderError(f"{path}: {name} is {value!r:.60}: give the text of the token")
    # Fields such as `image_token`, which only some models have.
    further = [
        value
        for name, value in settings.items()
        if name.endswith("_token") and name not in SPECIAL_TOKENS and isinstance(value, str)
    ]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    further += extra.values() if isinstance(extra, dict) else extra
    tokens = [
        AddedToken(_text(value), {**_flags(value), "special": True})
        for value in (*named.values(), *further)
    ]
    return {name: _text(value) for name, value in named.items()}, tokens


def _text(token: str | dict) -> str:
    """Returns the text of a special token. Some files store it in the field "content" of a dict."""
    return token["content"] if isinstance(token, dict) else token


def _flags(token: str | dict) -> dict[str, bool]:
    """Returns the flags that a file gives a token."""
    return {name: token[name] for name in FLAGS if name in token} if isinstance(token, dict) else {}


def _read_if_present(path: pathlib.Path) -> dict[str, Any]:
    """Returns the fields of a JSON file that are not null; none if there is no file."""
    fields = read_json(path) if path.exists() else {}
    return {name: value for name, value in fields.items() if value is not None}


def _decoder_entries(path: pathlib.Path, settings: Mapping[str, Any]) -> list[tuple[str, dict]]:
    """Returns the entries of `added_tokens_decoder`. Raises ModelFolderError for a wrong one."""
    entries = settings["added_tokens_decoder"]
    is_valid = isinstance(entries, dict) and all(
        number.isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
        for number, entry in entries.items()
    )
    if not is_valid:
        form = '{"NUMBER": {"content": "TEXT"}}'
        raise ModelFolderError(f"{path}: give added_tokens_decoder the form {form}")
    return list(entries.items())


def _numbers_by_text(path: pathlib.Path) -> list[tuple[str, int]]:
    """Returns the entries of added_tokens.json. Raises ModelFolderError for a wrong one."""
    entries = _read_if_present(path)
    if not all(isinstance(number, int) for number in entries.values()):
        raise ModelFolderError(f'{path}: give it the form {{"TEXT": NUMBER}}')
    return list(entries.items())
