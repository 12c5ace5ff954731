"""A checkpoint folder's tokenizer: text to tokens and back, its chat template, its stop tokens.

Needs the packages `tokenizers` and, for chat templates, `jinja2` (the `hf` extra).
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from staleness_grpo.policy.huggingface_config import CheckpointError, read_json

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# What chat templates that write the date are told: with today's, a prompt would be another one tomorrow. It is the day
# that Llama 3's own template falls back on.
TODAY = datetime.datetime(2024, 7, 26)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """tokenizer.json with what the other files of the folder say about its use."""

    tokenizer: Any  # tokenizers.Tokenizer
    bos_token: int | None
    stop_tokens: tuple[int, ...]  # each of them ends a response; the first pads too, where there is no pad token
    pad_token: int
    chat_template: str | None
    template_file: pathlib.Path  # where that stands
    special_tokens: dict[str, str]  # bos_token and the like as text: what a chat template may name

    @property
    def vocab_size(self) -> int:
        """The largest token and one more; a model's vocabulary may be larger, filled up to a round number."""
        return max(self.tokenizer.get_vocab().values()) + 1  # tokens may leave numbers out

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a text, with those that tokenizer.json puts around it unless `add_special_tokens` is False."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens; tokens beyond the tokenizer's vocabulary are left out."""
        return self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=skip_special_tokens)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a conversation ({"role", "content"} each) up to where the assistant answers.

        Raises:
          CheckpointError: if the checkpoint has no chat template, or one that fails.
        """
        return self.encode(self.render_chat(messages), add_special_tokens=False)  # the template writes them itself

    def render_chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a conversation up to where the assistant answers. Raises CheckpointError as `encode_chat`."""
        if self.chat_template is None:
            raise CheckpointError("the checkpoint has no chat template")
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %}: marks what the assistant said, for training; the text is what stands inside."""

            tags = {"generation"}

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        # The settings, and the names beyond Jinja's own, that chat templates are written for.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = TODAY.strftime
        names = dict(messages=list(messages), tools=None, documents=None, add_generation_prompt=True)
        try:
            return environment.from_string(self.chat_template).render(**names, **self.special_tokens)
        except CheckpointError:
            raise
        except Exception as error:  # a template is a program, and can fail as any other
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"the chat template in {self.template_file} fails ({reason})") from error


def load(folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Stop tokens are the `eos_token_id` of generation_config.json, or of config.json where that has none.

    Raises:
      CheckpointError: if tokenizer.json is missing or unreadable, or no file names a stop token.
    """
    import tokenizers

    folder = pathlib.Path(folder)
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(f"{folder} has no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special_map, texts, generation, config = (
        read_json(folder / name) if (folder / name).exists() else {}
        for name in ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json", "config.json")
    )
    named = special_map | {name: token for name, token in texts.items() if token is not None}
    special = {name: _text(named[name]) for name in SPECIAL_TOKENS if named.get(name) is not None}
    ids = {name: tokenizer.token_to_id(text) for name, text in special.items()}
    stop = next((found for place in (generation, config) if (found := place.get("eos_token_id")) is not None), None)
    if stop is None or stop == []:
        raise CheckpointError(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")
    stop_tokens = (stop,) if isinstance(stop, int) else tuple(stop)
    pad = next((pad for pad in (generation.get("pad_token_id"), ids.get("pad_token")) if pad is not None), None)
    template = folder / "chat_template.jinja"
    in_own_file = template.exists()
    return Tokenizer(
        tokenizer=tokenizer,
        bos_token=generation.get("bos_token_id", config.get("bos_token_id", ids.get("bos_token"))),
        stop_tokens=stop_tokens,
        pad_token=stop_tokens[0] if pad is None else pad,
        chat_template=template.read_text() if in_own_file else _default_template(texts.get("chat_template")),
        template_file=template if in_own_file else folder / "tokenizer_config.json",
        special_tokens=special,
    )


def _text(token: str | dict) -> str:
    """A special token's text, which some files wrap in a record."""
    return token["content"] if isinstance(token, dict) else token


def _default_template(template: str | list | None) -> str | None:
    """The template, which some files keep in a list of named ones."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _raise(message: str) -> None:
    """What a chat template calls for a conversation that it does not know how to write."""
    raise CheckpointError(f"the chat template refuses the conversation: {message}")
