"""Defines text tasks: problems from a file, and problems from reasoning-gym.

All prompts are encoded when the task is made, because the longest prompt decides the shape of every
batch.
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staleness_grpo.errors import FieldError, require, require_choice, require_local
from staleness_grpo.policy.huggingface.config import ModelFolderError
from staleness_grpo.policy.huggingface.tokenizer import Tokenizer
from staleness_grpo.runtime.records import TwiceError, fields_given_once
from staleness_grpo.tasks import numbers, verifiers
from staleness_grpo.types import Prompts

PLACEHOLDER = "{prompt}"


@dataclasses.dataclass(frozen=True)
class TextProblem:
    """A question, and the reference with which the verifier compares the responses."""

    prompt: str
    reference: Any  # None if the verifier needs none
    # Where the problem stands in its file, for error messages: "line 3".
    place: str = dataclasses.field(default="", compare=False)


class PromptedTask:
    """A TextTask with a list of problems as its prompts.

    Args:
      tokenizer: the checkpoint's tokenizer. Its stop tokens end a response.
      problems: the problems, in the order of their indices.
      verify: (response, reference) -> reward. It runs in worker processes, so it must be picklable.
      max_response_length: R, in tokens.
      prompt: a template for the text of a prompt. {prompt} is replaced by the text of the problem.
      chat: whether the prompt is a user message in the checkpoint's chat template.
      system: the system message of the chat; "" for no system message.

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
    ):
        require(len(problems) > 0, "problems", "there are no problems: give at least one")
        require(PLACEHOLDER in prompt, "prompt", f"write {PLACEHOLDER} where the problem goes")
        require(
            chat or not system,
            "system",
            "a system message needs chat=True: set chat to True, or remove system",
        )
        require(max_response_length >= 1, "max_response_length", "give a number >= 1")
        self.tokenizer = tokenizer
        self.verify = verify
        self.max_response_length = max_response_length
        self._references = [problem.reference for problem in problems]
        self._tokens = [
            _encode(tokenizer, prompt.replace(PLACEHOLDER, problem.prompt), chat, system)
            for problem in problems
        ]
        places = [problem.place or f"problem {i}" for i, problem in enumerate(problems, start=1)]
        lengths = [len(tokens) for tokens in self._tokens]
        if 0 in lengths:
            place = places[lengths.index(0)]
            hint = f"the prompt of {place} is empty: add some text around {PLACEHOLDER}"
            raise FieldError("prompt", hint)
        self.num_prompts = len(problems)
        self.prompt_length = max(lengths)
        self.longest_prompt = places[lengths.index(self.prompt_length)]  # for error messages
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


def _encode(tokenizer: Tokenizer, text: str, chat: bool, system: str) -> list[int]:
    """Returns the tokens of a prompt. Raises FieldError if the chat template cannot be used."""
    if not chat:
        return _encode_text(tokenizer, text)
    messages = [{"role": "user", "content": text}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return tokenizer.encode_chat(messages)
    except ModelFolderError as error:
        raise FieldError(
            "chat", f"{error}: set chat to False, or give another checkpoint"
        ) from error


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


def jsonl_task(
    tokenizer: Tokenizer,
    *,
    path: str,
    verifier: str,
    max_response_length: int,
    prompt: str = PLACEHOLDER,
    chat: bool = False,
    system: str = "",
) -> PromptedTask:
    """Makes a task with the problems of a JSON-lines file.

    A line is an object with the fields "prompt" and "answer", or, as in GSM8K, "question" and
    "answer". From a GSM8K answer, only the text after the last '####' is kept.

    Args:
      tokenizer: the checkpoint's tokenizer.
      path: the path of the file.
      verifier: a key of `verifiers.MATHEMATICS`.
      max_response_length, prompt, chat, system: see PromptedTask.

    Raises:
      FieldError: a field or a line of the file cannot be used, or a package is not installed.
    """
    require_choice({"verifier": verifier}, "verifier", tuple(verifiers.MATHEMATICS))
    if verifier == "math_verify":
        _require_package("math_verify", "verifier", "math-verify", "or choose number")
    problems = read_problems(path)
    if verifier == "number":
        for problem in problems:
            if numbers.whole_number(problem.reference) is None:
                reason = f"the answer {problem.reference[:40]!r} on {problem.place} of path"
                hint = "choose exact, which compares text, or math_verify, which reads formulas"
                raise FieldError("verifier", f"{reason} is not a number alone: {hint}", verifier)
    return PromptedTask(
        tokenizer,
        problems,
        verifiers.MATHEMATICS[verifier],
        max_response_length=max_response_length,
        prompt=prompt,
        chat=chat,
        system=system,
    )


def read_problems(path: str | pathlib.Path) -> list[TextProblem]:
    """Returns the problems of a JSON-lines file, in the order of the file.

    Raises:
      FieldError: the field `path` names a file that cannot be read, has no problems, or has a line
        that is not a problem. The message has the number of the first such line.
    """
    require_local(str(path), "path")
    try:
        # The encoding utf-8-sig accepts files with or without a byte-order mark.
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise FieldError("path", f"{reason}: give a JSON-lines file of problems") from error
    lines = text.split("\n")  # not splitlines, which splits at U+2028; a JSON string may contain it
    problems = [
        _parse_problem(line, number) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    require(len(problems) > 0, "path", "the file has no problems: give another file")
    return problems


def _parse_problem(line: str, number: int) -> TextProblem:
    """Returns the problem on line `number`. Raises FieldError if the line is not a problem."""

    def line_error(reason: str) -> FieldError:
        hint = f'line {number} {reason}: write {{"prompt": TEXT, "answer": TEXT}}'
        return FieldError("path", hint)

    try:
        fields = json.loads(line, object_pairs_hook=fields_given_once)
    except TwiceError as error:
        raise line_error(f"has the field {error} twice") from error
    except (ValueError, RecursionError) as error:  # RecursionError: too many nested brackets
        raise line_error("is not JSON") from error
    if not isinstance(fields, dict):
        raise line_error("is not a JSON object")
    if "prompt" in fields and "question" in fields:
        raise line_error("has both a prompt and a question")
    prompt_field = "prompt" if "prompt" in fields else "question"
    for name in (prompt_field, "answer"):
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise line_error(f"has no text as its {name}")
        if re.search("[\ud800-\udfff]", value):
            raise line_error(f"has half a surrogate pair, which is not a character, in its {name}")
    answer = fields["answer"]
    if prompt_field == "question":
        _, marker, answer = answer.rpartition("####")
        if not marker or not answer.strip():  # an empty answer would reward an empty response
            raise line_error("has a question whose answer has nothing after '####'")
    return TextProblem(fields[prompt_field], answer.strip(), f"line {number}")


def reasoning_gym_task(
    tokenizer: Tokenizer,
    *,
    dataset: str,
    size: int,
    seed: int,
    max_response_length: int,
    options: Mapping[str, Any] | None = None,
    prompt: str = PLACEHOLDER,
    chat: bool = False,
    system: str = "",
) -> PromptedTask:
    """Makes a task with problems that the library reasoning-gym generates and judges.

    Args:
      tokenizer: the checkpoint's tokenizer.
      dataset: the name of a reasoning-gym dataset, such as 'chain_sum'.
      size: the number of problems to generate.
      seed: the seed from which the dataset generates its problems.
      options: other settings of the dataset, such as its difficulty. Settings that are not given
        have the library's defaults.
      max_response_length, prompt, chat, system: see PromptedTask.

    Raises:
      FieldError: a field cannot be used, or the package is not installed.
    """
    _require_package("reasoning_gym", "name", "reasoning-gym", "or give another task")
    import reasoning_gym

    known = dataset in reasoning_gym.factory.DATASETS
    require(known, "dataset", "reasoning-gym has no such dataset: choose one from its gallery")
    require(size >= 1, "size", "give a number >= 1")
    options = {} if options is None else options
    hint = "give a dict of the dataset's other settings; size and seed have their own fields"
    require(isinstance(options, Mapping) and not {"size", "seed"} & set(options), "options", hint)
    settings = {"size": size, "seed": seed, **options}
    try:
        entries = reasoning_gym.create_dataset(dataset, **settings)
        problems = [TextProblem(entries[i]["question"], entries[i]) for i in range(size)]
    except (TypeError, ValueError, AssertionError) as error:
        hint = f"reasoning-gym does not accept these options ({error}): correct or remove them"
        raise FieldError("options", hint) from error
    return PromptedTask(
        tokenizer,
        problems,
        verifiers.ReasoningGym(dataset, settings),
        max_response_length=max_response_length,
        prompt=prompt,
        chat=chat,
        system=system,
    )


def _require_package(module: str, field: str, package: str, alternative: str) -> None:
    """Raises FieldError if the value of a field needs a module that is not installed."""
    installed = importlib.util.find_spec(module) is not None
    require(installed, field, f"pip install {package} (of the extra tasks), {alternative}")
