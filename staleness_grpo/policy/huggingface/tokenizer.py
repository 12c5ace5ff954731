"""Reads the tokenizer of a model folder, with its chat template and its stop tokens.

Needs the packages `tokenizers` and, for chat templates, `jinja2` (the `hf` extra).
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from staleness_grpo.policy.huggingface import added_tokens
from staleness_grpo.policy.huggingface.config import ModelFolderError, read_json

# The date that chat templates get. With the real date, prompts would change from day to day. The
# template of Llama 3 also uses this date by default.
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Holds the tokenizer of tokenizer.json, and settings from the other files of the folder."""

    tokenizer: Any  # tokenizers.Tokenizer
    bos_token: int | None
    eos_token: int | None  # of tokenizer_config.json; a stop token in most folders
    stop_tokens: tuple[int, ...]  # each of them ends a response
    pad_token: int  # the first stop token, if the folder names no pad token
    chat_template: str | None
    template_file: pathlib.Path  # the file that has the chat template
    special_tokens: dict[str, str]  # name -> text of each special token, for the chat template

    @property
    def vocab_size(self) -> int:
        """Returns the largest token plus one.

        The vocabulary of the model may be larger, because models pad it to a round number.
        """
        # Not the number of tokens, because a tokenizer may skip some token ids.
        return max(self.tokenizer.get_vocab().values()) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the tokens of a text.

        With `add_special_tokens`, the special tokens that tokenizer.json defines for the beginning
        and the end of a text are included.
        """
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of the tokens. Tokens outside the tokenizer's vocabulary are skipped."""
        return self.tokenizer.decode(
            [int(token) for token in tokens], skip_special_tokens=skip_special_tokens
        )

    def encode_chat(
        self, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Returns the tokens of a conversation, up to the point where the assistant answers.

        Args:
          messages: the messages, each with "role" and "content".
          arguments: more variables of the chat template, by name.

        Raises:
          ModelFolderError: the folder has no chat template, or its chat template fails.
        """
        # No special tokens are added, because the template contains them.
        return self.encode(self.render_chat(messages, arguments), add_special_tokens=False)

    def render_chat(
        self, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any] | None = None
    ) -> str:
        """Returns the text that `encode_chat` encodes, and raises the same errors."""
        template = self._template()
        names = dict(tools=None, documents=None) | dict(arguments or {})
        names |= dict(messages=list(messages), add_generation_prompt=True)
        try:
            environment = chat_environment()
            return environment.from_string(template).render(**names, **self.special_tokens)
        except ModelFolderError:
            raise
        except Exception as error:  # a template is a program, and can raise any error
            raise self._template_failure(error) from error

    def template_variables(self) -> list[str]:
        """Returns the variables of the chat template that `arguments` may set, in order.

        Raises:
          ModelFolderError: the folder has no chat template, or it cannot be parsed.
        """
        import jinja2
        import jinja2.meta

        environment, template = chat_environment(), self._template()
        try:
            used = jinja2.meta.find_undeclared_variables(environment.parse(template))
        except jinja2.TemplateError as error:
            raise self._template_failure(error) from error
        return sorted(used - {"messages", "add_generation_prompt", *self.special_tokens})

    def _template(self) -> str:
        """Returns the chat template. Raises ModelFolderError if there is none."""
        if self.chat_template is None:
            raise ModelFolderError("the checkpoint has no chat template")
        return self.chat_template

    def _template_failure(self, error: Exception) -> ModelFolderError:
        """Returns the error of a chat template that fails."""
        reason = f"{type(error).__name__}: {error}"
        return ModelFolderError(f"the chat template in {self.template_file} fails ({reason})")


def chat_environment() -> Any:
    """Returns Jinja's environment with the settings and names that chat templates expect."""
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders the contents of {% generation %} blocks, which mark the assistant's part."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_from_template
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    return environment


def load(folder: str | pathlib.Path) -> Tokenizer:
    """Returns the tokenizer of a model folder.

    The stop tokens are the `eos_token_id` of generation_config.json, or else of config.json.

    Raises:
      ModelFolderError: tokenizer.json is missing or cannot be read, no file names a stop token, or
        a file gives a token another number than tokenizer.json does.
    """
    import tokenizers

    folder = pathlib.Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelFolderError(
            f"{folder} has no tokenizer.json: copy the checkpoint's tokenizer.json into this folder"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        hint = "replace it with the checkpoint's own file"
        raise ModelFolderError(f"{path} cannot be read ({error}): {hint}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    named = added_tokens.read(folder)
    added_tokens.add(tokenizer, named, folder)
    tokenizer_config, generation, config = (
        read_json(folder / name) if (folder / name).exists() else {}
        for name in ("tokenizer_config.json", "generation_config.json", "config.json")
    )
    # Then "</s>" in a text is characters, and not the token.
    tokenizer.encode_special_tokens = bool(tokenizer_config.get("split_special_tokens", False))
    ids = {name: tokenizer.token_to_id(text) for name, text in named.special.items()}
    stop = _first_given(generation.get("eos_token_id"), config.get("eos_token_id"))
    if stop is None or stop == []:
        raise ModelFolderError(
            f"{folder}: neither generation_config.json nor config.json has an eos_token_id: "
            "add the number of the token that ends a response to one of them"
        )
    stop_tokens = (stop,) if isinstance(stop, int) else tuple(stop)
    pad = _first_given(generation.get("pad_token_id"), ids.get("pad_token"))
    template_file = folder / "chat_template.jinja"
    if template_file.exists():
        try:
            template: str | None = template_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            hint = "replace it with the checkpoint's own file"
            raise ModelFolderError(f"{template_file} cannot be read ({error}): {hint}") from error
    else:
        template_file = folder / "tokenizer_config.json"
        template = _default_template(tokenizer_config.get("chat_template"), template_file)
    return Tokenizer(
        tokenizer=tokenizer,
        bos_token=_first_given(
            generation.get("bos_token_id"), config.get("bos_token_id"), ids.get("bos_token")
        ),
        eos_token=ids.get("eos_token"),
        stop_tokens=stop_tokens,
        pad_token=stop_tokens[0] if pad is None else pad,
        chat_template=template,
        template_file=template_file,
        special_tokens=named.special,
    )


def _first_given(*values: Any) -> Any:
    """Returns the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def _default_template(template: str | list | None, path: pathlib.Path) -> str | None:
    """Returns the default chat template. Some files have a list of named templates.

    Raises:
      ModelFolderError: the value is neither.
    """
    if isinstance(template, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in template]
        named = {entry.get("name"): entry.get("template") for entry in entries}
        template = named.get("default")
        if set(named) == {None} or ("default" in named and not isinstance(template, str)):
            form = '[{"name": "default", "template": "TEXT"}]'
            raise ModelFolderError(f"{path}: give chat_template the form {form}, or a text")
    if not isinstance(template, str | None):
        raise ModelFolderError(f"{path}: chat_template is {template!r:.60}: give a text")
    return template


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns a value as JSON, for the filter `tojson` of chat templates.

    Jinja's own filter escapes HTML and sorts keys, which changes the prompt.
    """
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_from_template(message: str) -> None:
    """Raises ModelFolderError. A chat template calls this to reject a conversation."""
    raise ModelFolderError(f"the chat template refuses the conversation: {message}")
