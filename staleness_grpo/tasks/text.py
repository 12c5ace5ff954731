"""Problems in words, answered by a language model and judged as text: files, reasoning-gym, and stories.

Not in the config but made here from it: the prompts' tokens, all of them at the start, because the longest one gives
every batch its shape.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from staleness_grpo.policy.huggingface_config import CheckpointError
from staleness_grpo.policy.tokenizer import Tokenizer
from staleness_grpo.tasks import TaskError, verifiers
from staleness_grpo.types import Prompts

PLACE = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is asked, and what a response is compared with."""

    prompt: str
    reference: Any


class PromptedTask:
    """A TextTask of a list of problems.

    Args:
      tokenizer: of the checkpoint; its stop tokens end a response.
      problems: in the order of their indices.
      verify: (response, reference) -> reward, importable by name; it runs in worker processes.
      prompt: what is written for a problem, with {prompt} where its own text goes.
      chat: as a user's message, in the checkpoint's chat template; after `system` as system message, unless that is "".
      max_response_length: R, tokens.

    Raises:
      TaskError: for fields that cannot be used, among them problems that are not there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        problems: Sequence[Problem],
        verify: Callable[[str, Any], float],
        *,
        max_response_length: int,
        prompt: str = PLACE,
        chat: bool = False,
        system: str = "",
    ):
        if not problems:
            raise TaskError("problems", "there are none: give one or more")
        if PLACE not in prompt:
            raise TaskError("prompt", f"write {PLACE} where the problem goes")
        if system and not chat:
            raise TaskError("system", "a system message needs chat=True")
        if max_response_length < 1:
            raise TaskError("max_response_length", "give a number >= 1")
        self.tokenizer, self.verify, self.max_response_length = tokenizer, verify, max_response_length
        self._references = [problem.reference for problem in problems]
        self._tokens = [_encode(tokenizer, prompt.replace(PLACE, p.prompt), chat, system) for p in problems]
        if [] in self._tokens:
            number = self._tokens.index([]) + 1
            raise TaskError("prompt", f"problem {number} has no tokens to answer: write some text around {PLACE}")
        self.num_prompts = len(problems)
        self.prompt_length = max(map(len, self._tokens))
        self.vocab_size = tokenizer.vocab_size
        self.end_token, self.pad_token = tokenizer.stop_tokens, tokenizer.pad_token

    @property
    def fingerprint(self) -> str:
        """A hash of the problems in the tokens they are asked in, and of the tokens that end and pad a response."""
        problems = [self._tokens, self._references, self.end_token, self.pad_token]
        # What JSON does not know stands for its type alone: reasoning-gym's references hold sets and the like.
        written = json.dumps(problems, default=lambda value: type(value).__name__, skipkeys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def prompts(self, index_N: np.ndarray) -> Prompts:
        """The problems' tokens, left-padded."""
        index_N = np.asarray(index_N, np.int32)
        tokens_NxP = np.full((len(index_N), self.prompt_length), self.pad_token, np.int32)
        mask_NxP = np.zeros(tokens_NxP.shape, bool)
        for n, index in enumerate(index_N):
            tokens = self._tokens[index]
            tokens_NxP[n, -len(tokens) :] = tokens
            mask_NxP[n, -len(tokens) :] = True  # not by value: a prompt may hold the pad token
        return Prompts(tokens_NxP=tokens_NxP, mask_NxP=mask_NxP, index_N=index_N)

    def samples(
        self, index_N: np.ndarray, tokens_NxGxR: np.ndarray, mask_NxGxR: np.ndarray
    ) -> tuple[list[str], list[Any]]:
        """The text of each response, without its stop token, beside its problem's reference."""
        texts, references = [], []
        # The stop token need not be one of the special ones, which decoding leaves out.
        written_NxGxR = np.asarray(mask_NxGxR) & ~np.isin(tokens_NxGxR, self.end_token)
        for index, tokens_GxR, written_GxR in zip(index_N, tokens_NxGxR, written_NxGxR, strict=True):
            texts += [self.decode(tokens[written]) for tokens, written in zip(tokens_GxR, written_GxR, strict=True)]
            references += [self._references[index]] * len(tokens_GxR)
        return texts, references

    def decode(self, tokens: np.ndarray) -> str:
        """The text, without special tokens."""
        return self.tokenizer.decode(tokens)


def _encode(tokenizer: Tokenizer, text: str, chat: bool, system: str) -> list[int]:
    if not chat:
        return tokenizer.encode(text)
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
    try:
        return tokenizer.encode_chat(messages)
    except CheckpointError as error:
        raise TaskError("chat", f"{error}: give False, or another checkpoint") from error


def jsonl_task(
    tokenizer: Tokenizer,
    *,
    path: str,
    verifier: str,
    max_response_length: int,
    prompt: str = PLACE,
    chat: bool = False,
    system: str = "",
) -> PromptedTask:
    """The problems of a JSON-lines file, {"prompt", "answer"} or GSM8K's {"question", "answer"} on each line.

    Of a GSM8K answer only what follows '####' is kept.

    Args:
      verifier: a key of `verifiers.MATHEMATICS`.
      max_response_length, prompt, chat, system: see PromptedTask.
    """
    if verifier not in verifiers.MATHEMATICS:
        raise TaskError("verifier", f"choose one of {', '.join(verifiers.MATHEMATICS)}")
    if verifier == "math_verify":
        _require_package("math_verify", "verifier", "math-verify", "or give number")
    problems = read_problems(path)
    if verifier == "number":
        for problem in problems:
            if verifiers.final_number(problem.reference) is None:
                mend = f"the answer {problem.reference[:40]!r} in task.path has no number: give exact or math_verify"
                raise TaskError("verifier", mend)
    prompting = dict(max_response_length=max_response_length, prompt=prompt, chat=chat, system=system)
    return PromptedTask(tokenizer, problems, verifiers.MATHEMATICS[verifier], **prompting)


def read_problems(path: str | pathlib.Path) -> list[Problem]:
    """The problems of a file, in its order. Raises TaskError, with the line's number, for one that is none."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")  # with a byte-order mark or without
        lines = text.split("\n")  # and not at U+2028, which a JSON string may hold
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise TaskError("path", f"{reason}: give a JSON-lines file of problems") from error
    problems = [_problem(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not problems:
        raise TaskError("path", "the file has no problems: give another")
    return problems


def _problem(line: str, number: int) -> Problem:
    def refuse(reason):
        return TaskError("path", f'line {number} {reason}: write {{"prompt": TEXT, "answer": TEXT}}')

    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets
        raise refuse("is no JSON") from error
    names = ("prompt", "answer") if isinstance(fields, dict) and "prompt" in fields else ("question", "answer")
    values = [fields.get(name) if isinstance(fields, dict) else None for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise refuse(f"has no text {name}")
        if re.search("[\ud800-\udfff]", value):
            raise refuse(f"has half a surrogate pair, which is no character, in its {name}")
    prompt, answer = values
    if names[0] == "question":
        _, marker, answer = answer.rpartition("####")
        if not marker or not answer.strip():  # an empty answer would be that of an empty response
            raise refuse("has a question whose answer has nothing after '####'")
    return Problem(prompt, answer.strip())


def reasoning_gym_task(
    tokenizer: Tokenizer,
    *,
    dataset: str,
    size: int,
    seed: int,
    max_response_length: int,
    options: Mapping[str, Any] | None = None,
    prompt: str = PLACE,
    chat: bool = False,
    system: str = "",
) -> PromptedTask:
    """Problems that the library reasoning-gym makes and judges.

    Args:
      dataset: any of its names, such as 'chain_sum'.
      size, seed: how many problems, and which.
      options: the dataset's own settings but `size` and `seed`, such as its difficulty; the library's defaults where
        unset.
      max_response_length, prompt, chat, system: see PromptedTask.
    """
    _require_package("reasoning_gym", "name", "reasoning-gym", "or give another task")
    import reasoning_gym

    if dataset not in reasoning_gym.factory.DATASETS:
        raise TaskError("dataset", "reasoning-gym has none of that name: its gallery lists them")
    if size < 1:
        raise TaskError("size", "give a number >= 1")
    options = {} if options is None else options
    if not isinstance(options, Mapping) or {"size", "seed"} & set(options):
        raise TaskError("options", "give a dict of the dataset's own settings; task.size and task.seed are apart")
    settings = {"size": size, "seed": seed, **options}
    try:
        entries = reasoning_gym.create_dataset(dataset, **settings)
        problems = [Problem(entries[i]["question"], entries[i]) for i in range(size)]
    except (TypeError, ValueError, AssertionError) as error:
        raise TaskError("options", f"reasoning-gym refuses them ({error}): leave them out, or mend them") from error
    prompting = dict(max_response_length=max_response_length, prompt=prompt, chat=chat, system=system)
    return PromptedTask(tokenizer, problems, verifiers.ReasoningGym(dataset, settings), **prompting)


# The openings of the stories that the tinyllamas models were trained on are like these.
NAMES = ("Lily", "Tim", "Sara", "Ben", "Mia", "Tom", "Amy", "Max")
HEROES = ("girl", "boy", "cat", "dog", "bird", "bunny", "bear", "fish")
MOODS = ("little", "big", "happy", "sad")
OPENING = "Once upon a time, there was a {mood} {hero} named {name}."

# rule -> (verifier, reference)
STORY_RULES: dict[str, tuple[Callable[[str, Any], float], Any]] = {
    "dialogue": (verifiers.story_dialogue, None),
    "mentions": (verifiers.story_mentions, ("friend", "happy", "play", "smile")),
    "short_sentences": (verifiers.story_short_sentences, 6),
}


def stories_task(tokenizer: Tokenizer, *, rule: str, max_response_length: int) -> PromptedTask:
    """Openings of children's stories for a plain language model to go on with; no answer is right or wrong.

    Args:
      rule: what is rewarded, a key of STORY_RULES.
    """
    if rule not in STORY_RULES:
        raise TaskError("rule", f"choose one of {', '.join(STORY_RULES)}")
    verify, reference = STORY_RULES[rule]
    problems = [
        Problem(OPENING.format(mood=mood, hero=hero, name=name), reference)
        for mood, hero, name in itertools.product(MOODS, HEROES, NAMES)
    ]
    return PromptedTask(tokenizer, problems, verify, max_response_length=max_response_length)


def _require_package(module: str, field: str, package: str, otherwise: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise TaskError(field, f"pip install {package}, of the extra tasks, {otherwise}")
