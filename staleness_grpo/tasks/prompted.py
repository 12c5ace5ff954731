"""Defines a text task as a list of problems, a template around them, and a verifier.

All prompts are encoded when the task is made, because the longest prompt decides the shape of every
batch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staleness_grpo.errors import FieldError, require, require_choice
from staleness_grpo.policy.huggingface.config import ModelFolderError
from staleness_grpo.policy.huggingface.tokenizer import Tokenizer
from staleness_grpo.tasks.problems import TextProblem
from staleness_grpo.types import Prompts

PLACEHOLDER = "{prompt}"
REFUSE, DROP = TOO_LONG = ("refuse", "drop")


class PromptedTask:
    """A TextTask with a list of problems as its prompts.

    Args:
      tokenizer: the checkpoint's tokenizer. Its stop tokens end a response.
      problems: the problems, in the order of their indices.
      verify: (response, reference) -> reward. It runs in worker processes, so it must be picklable.
      max_response_length: R, in tokens.
      prompt: a template for the text of a prompt. {prompt} is replaced by the text of the problem,
        or by the last message of a problem that is a list of messages.
      chat: whether the prompt is a user message in the checkpoint's chat template. Problems that
        are lists of messages need it.
      system: the system message of the chat; "" for no system message.
      template_arguments: more variables of the chat template, such as enable_thinking.
      max_prompt_length: the largest length of a prompt, in tokens; None for no limit.
      too_long: what happens to a longer prompt: "refuse" it, or "drop" its problem. The dropped
        problems are counted in `num_dropped`, and are no part of the fingerprint.

    Raises:
      FieldError: a field cannot be used, or there are no problems.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        problems: Sequence[TextProblem],
        verify: Callable[[str, Any], float],
        *,
        max_response_length: int,
        prompt: str = PLACEHOLDER,
        chat: bool = False,
        system: str = "",
        template_arguments: Mapping[str, Any] | None = None,
        max_prompt_length: int | None = None,
        too_long: str = REFUSE,
    ):
        require(len(problems) > 0, "problems", "there are no problems: give at least one")
        require(PLACEHOLDER in prompt, "prompt", f"write {PLACEHOLDER} where the problem goes")
        require(
            chat or not system,
            "system",
            "a system message needs chat=True: set chat to True, or remove system",
        )
        require(max_response_length >= 1, "max_response_length", "give a number >= 1")
        arguments = dict(template_arguments or {})
        _check_template_arguments(tokenizer, arguments, chat)
        _check_limit(max_prompt_length, too_long)
        self.tokenizer = tokenizer
        self.verify = verify
        self.max_response_length = max_response_length
        self.max_prompt_length = max_prompt_length
        places = [problem.place or f"problem {i}" for i, problem in enumerate(problems, start=1)]
        tokens = [
            _encode(tokenizer, problem.prompt, place, prompt, chat, system, arguments)
            for problem, place in zip(problems, places, strict=True)
        ]
        lengths = [len(prompt_tokens) for prompt_tokens in tokens]
        if 0 in lengths:
            place = places[lengths.index(0)]
            hint = f"the prompt of {place} is empty: add some text around {PLACEHOLDER}"
            raise FieldError("prompt", hint)
        kept = _short_enough(lengths, places, max_prompt_length, too_long)
        self._tokens = [tokens[i] for i in kept]
        self._references = [problems[i].reference for i in kept]
        self.num_prompts = len(kept)
        self.num_dropped = len(problems) - len(kept)
        self.prompt_length = max(lengths[i] for i in kept)
        longest = next(i for i in kept if lengths[i] == self.prompt_length)
        self.longest_prompt = places[longest]  # for error messages
        self.vocab_size = tokenizer.vocab_size
        self.end_token, self.pad_token = tokenizer.stop_tokens, tokenizer.pad_token

    @property
    def fingerprint(self) -> str:
        """Returns a hash of the prompts' tokens, the references, and the stop and pad tokens."""
        problems = [self._tokens, self._references, self.end_token, self.pad_token]
        # A value that JSON cannot store is replaced by the name of its type. The references of
        # reasoning-gym contain sets and other such objects.
        as_json = json.dumps(problems, default=lambda value: type(value).__name__, skipkeys=True)
        return hashlib.sha256(as_json.encode()).hexdigest()[:16]

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """Returns the tokens of the problems with these indices, left-padded."""
        index_N = np.asarray(index_N, np.int32)
        tokens_NxP = np.full((len(index_N), self.prompt_length), self.pad_token, np.int32)
        mask_NxP = np.zeros(tokens_NxP.shape, bool)
        for n, index in enumerate(index_N):
            tokens = self._tokens[index]
            tokens_NxP[n, -len(tokens) :] = tokens
            # The mask is not `tokens != pad_token`, because a prompt may contain the pad token.
            mask_NxP[n, -len(tokens) :] = True
        return Prompts(tokens_NxP=tokens_NxP, mask_NxP=mask_NxP, index_N=index_N)

    def samples(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> tuple[list[str], list[Any]]:
        """Returns the text of each response, without its stop token, and the references.

        Both lists have B = N * G entries. Each reference belongs to the problem of its response.
        """
        texts: list[str] = []
        references: list[Any] = []
        # A stop token ends a response. It need not be a special token.
        is_text_NxGxR = np.asarray(mask_NxGxR) & ~np.isin(tokens_NxGxR, self.end_token)
        for index, tokens_GxR, is_text_GxR in zip(
            index_N, tokens_NxGxR, is_text_NxGxR, strict=True
        ):
            for tokens_R, is_text_R in zip(tokens_GxR, is_text_GxR, strict=True):
                texts.append(self.decode(tokens_R[is_text_R]))
            references += [self._references[index]] * len(tokens_GxR)
        return texts, references

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of the tokens, without the first token, stop tokens and padding.

        Other special tokens stay in the text, because a verifier may look for tags such as
        <answer>, which some tokenizers have as special tokens.
        """
        left_out = {self.tokenizer.bos_token, *self.tokenizer.stop_tokens, self.pad_token}
        kept = [token for token in map(int, tokens) if token not in left_out]
        return self.tokenizer.decode(kept, skip_special_tokens=False)


def _check_template_arguments(
    tokenizer: Tokenizer, arguments: Mapping[str, Any], chat: bool
) -> None:
    """Raises FieldError for an argument that the checkpoint's chat template does not use."""
    for name, value in arguments.items():
        field = f"template_arguments.{name}"
        hint = "it needs chat=True: set chat to True, or leave the argument out"
        require(chat, field, hint, value)
        try:
            used = tokenizer.template_variables()
        except ModelFolderError as error:
            raise _template_error(error) from error
        hint = (
            f"the checkpoint's chat template does not use it: it uses {', '.join(used) or 'none'}"
        )
        require(name in used, field, hint, value)


def _check_limit(max_prompt_length: int | None, too_long: str) -> None:
    """Raises FieldError if the fields about long prompts cannot be used."""
    require_choice({"too_long": too_long}, "too_long", TOO_LONG)
    if max_prompt_length is None:
        hint = "it needs max_prompt_length: give a limit in tokens, or leave too_long out"
        require(too_long == REFUSE, "too_long", hint, too_long)
    else:
        hint = "give a number >= 1"
        require(max_prompt_length >= 1, "max_prompt_length", hint, max_prompt_length)


def _short_enough(
    lengths: Sequence[int], places: Sequence[str], limit: int | None, too_long: str
) -> list[int]:
    """Returns the indices of the prompts within the limit.

    Raises:
      FieldError: there are longer prompts, which are to be refused, or there are no others.
    """
    kept = [i for i, length in enumerate(lengths) if limit is None or length <= limit]
    num_longer, longest = len(lengths) - len(kept), max(lengths)
    if num_longer and too_long == REFUSE:
        place = places[lengths.index(longest)]
        reason = f"{num_longer} of {len(lengths)} prompts are longer, up to that of {place}"
        hint = f"{reason} with {longest} tokens: give at least {longest}, or too_long={DROP}"
        raise FieldError("max_prompt_length", hint, limit)
    hint = f"all prompts are longer: give at least {min(lengths)}, the length of the shortest"
    require(len(kept) > 0, "max_prompt_length", hint, limit)
    return kept


def _encode(
    tokenizer: Tokenizer,
    problem: str | Sequence[Mapping[str, str]],
    place: str,
    template: str,
    chat: bool,
    system: str,
    arguments: Mapping[str, Any],
) -> list[int]:
    """Returns the tokens of a prompt. Raises FieldError if the chat template cannot be used."""
    if isinstance(problem, str):
        messages = [{"role": "user", "content": template.replace(PLACEHOLDER, problem)}]
        if not chat:
            return _encode_text(tokenizer, messages[0]["content"])
    else:
        hint = f"the prompt of {place} is a list of messages, which needs a chat: set chat to True"
        require(chat, "chat", hint, chat)
        messages = [dict(message) for message in problem]
        messages[-1]["content"] = template.replace(PLACEHOLDER, messages[-1]["content"])
    if system:
        hint = f"the prompt of {place} has a system message of its own: leave system out"
        require(messages[0]["role"] != "system", "system", hint, system)
        messages.insert(0, {"role": "system", "content": system})
    try:
        return tokenizer.encode_chat(messages, arguments)
    except ModelFolderError as error:
        raise _template_error(error) from error


def _template_error(error: ModelFolderError) -> FieldError:
    """Returns the error of a chat template as one of the field `chat`."""
    return FieldError("chat", f"{error}: set chat to False, or give another checkpoint")


def _encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the tokens of a text that a response continues.

    The special tokens that the tokenizer adds before a text are included, unless the text already
    begins with the first token. Tokens that it adds after a text are left out. They would end the
    text before the response.
    """
    plain = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.bos_token is not None and plain[:1] == [tokenizer.bos_token]:
        return plain
    tokens = tokenizer.encode(text)
    for start in range(len(tokens) - len(plain) + 1):
        if tokens[start : start + len(plain)] == plain:
            return tokens[: start + len(plain)]
    return tokens
