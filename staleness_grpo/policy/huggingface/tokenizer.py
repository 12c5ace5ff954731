"""Reads the tokenizer of a model folder: text to tokens and back, chat template, stop tokens.

Needs the packages `tokenizers` and, for chat templates, `jinja2` (the `hf` extra).
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from staleness_grpo.policy.huggingface.config import ModelFolderError, read_json

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
# The date that chat templates are told. With the real date, a prompt would be another one tomorrow.
# Llama 3's own template falls back on this day.
TODAY = datetime.datetime(2024, 7, 26)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Holds tokenizer.json, and what the other files of the folder say about its use."""

    tokenizer: Any  # tokenizers.Tokenizer
    bos_token: int | None
    stop_tokens: tuple[int, ...]  # each of them ends a response
    pad_token: int  # the first stop token, if the folder names no pad token
    chat_template: str | None
    template_file: pathlib.Path  # has the chat template
    special_tokens: dict[str, str]  # bos_token and the like as text, for the chat template

    @property
    def vocab_size(self) -> int:
        """Returns the largest token plus one.

        A model's vocabulary may be larger, because it is filled up to a round number.
        """
        return max(self.tokenizer.get_vocab().values()) + 1  # tokens may leave numbers out

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the tokens of a text.

        With `add_special_tokens` they include those that tokenizer.json puts around a text.
        """
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of tokens; those beyond the tokenizer's vocabulary are left out."""
        return self.tokenizer.decode(
            [int(token) for token in tokens], skip_special_tokens=skip_special_tokens
        )

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Returns the tokens of a conversation, up to where the assistant answers.

        Args:
          messages: the messages, each with "role" and "content".

        Raises:
          ModelFolderError: the folder has no chat template, or one that fails.
        """
        # Without special tokens, because the template writes them itself.
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Returns the text that `encode_chat` encodes, and raises the same errors."""
        if self.chat_template is None:
            raise ModelFolderError("the checkpoint has no chat template")
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """Renders what is inside {% generation %} blocks, which mark the assistant's part."""

            tags = {"generation"}

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        # Chat templates are written for these settings, and for these names beyond Jinja's own.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = _refuse_conversation
        environment.globals["strftime_now"] = TODAY.strftime
        names = dict(
            messages=list(messages), tools=None, documents=None, add_generation_prompt=True
        )
        try:
            return environment.from_string(self.chat_template).render(
                **names, **self.special_tokens
            )
        except ModelFolderError:
            raise
        except Exception as error:  # a template is a program, and can fail as any other
            reason = f"{type(error).__name__}: {error}"
            raise ModelFolderError(
                f"the chat template in {self.template_file} fails ({reason})"
            ) from error


def load(folder: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer of a model folder.

    Stop tokens are the `eos_token_id` of generation_config.json. If that has none, config.json is
    asked.

    Raises:
      ModelFolderError: tokenizer.json is missing or cannot be read, or no file names a stop token.
    """
    import tokenizers

    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelFolderError(
            f"{folder} has no tokenizer.json: put the checkpoint's own file there"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no more special class
        hint = "put the checkpoint's own file there"
        raise ModelFolderError(f"{path} cannot be read ({error}): {hint}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special_map, texts, generation, config = (
        read_json(folder / name) if (folder / name).exists() else {}
        for name in (
            "special_tokens_map.json",
            "tokenizer_config.json",
            "generation_config.json",
            "config.json",
        )
    )
    named = special_map | {name: token for name, token in texts.items() if token is not None}
    special = {name: _text(named[name]) for name in SPECIAL_TOKENS if named.get(name) is not None}
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    stop = _first_given(generation.get("eos_token_id"), config.get("eos_token_id"))
    if stop is None or stop == []:
        raise ModelFolderError(
            f"{folder}: neither generation_config.json nor config.json has an eos_token_id: "
            "add the token that ends a response"
        )
    stop_tokens = (stop,) if isinstance(stop, int) else tuple(stop)
    pad = _first_given(generation.get("pad_token_id"), ids.get("pad_token"))
    template_file = folder / "chat_template.jinja"
    if template_file.exists():
        template: str | None = template_file.read_text()
    else:
        template_file = folder / "tokenizer_config.json"
        template = _default_template(texts.get("chat_template"))
    return Tokenizer(
        tokenizer=tokenizer,
        bos_token=generation.get("bos_token_id", config.get("bos_token_id", ids.get("bos_token"))),
        stop_tokens=stop_tokens,
        pad_token=stop_tokens[0] if pad is None else pad,
        chat_template=template,
        template_file=template_file,
        special_tokens=special,
    )


def _first_given(*values: Any) -> Any:
    """Returns the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def _text(token: str | dict) -> str:
    """Returns the text of a special token, which some files wrap in a record."""
    return token["content"] if isinstance(token, dict) else token


def _default_template(template: str | list | None) -> str | None:
    """Returns the default chat template; some files have a list of named templates."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _refuse_conversation(message: str) -> None:
    """Raises ModelFolderError. A chat template calls this to refuse a conversation."""
    raise ModelFolderError(f"the chat template refuses the conversation: {message}")
