"""Defines verifiers, which judge the text of a response.

A verifier takes a response and the reference of its problem, and returns a reward in [0, 1].
Verifiers run in worker processes, so this module does not import JAX.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from staleness_grpo.tasks.numbers import final_number


def exact(response: str, reference: str) -> float:
    """Returns 1 if response and reference are equal, except for white space around them, else 0."""
    return float(response.strip() == reference.strip())


def number(response: str, reference: str) -> float:
    """Returns 1 if the final numbers of response and reference are equal, else 0.

    `numbers.final_number` finds the two numbers. Their values are compared, so 1,200.00 equals
    1200, and 1/2 equals 0.5.
    """
    answer, expected = final_number(response), final_number(reference)
    return float(answer is not None and answer == expected)


class MathVerify:
    """A verifier that compares answers by the library math-verify.

    The reward is 1 if the response's final answer equals the reference, else 0. Answers may be in
    plain text or in LaTeX.
    """

    def __call__(self, response: str, reference: str) -> float:
        """Returns the reward of a response."""
        import math_verify as library

        # The library's own time limits, which use alarm signals, are switched off. The reward pool
        # limits the time for each response.
        expected = library.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        answer = library.parse(response, parsing_timeout=None)
        return float(library.verify(expected, answer, timeout_seconds=None))

    def warm_up(self) -> None:
        """Imports the library, including the modules that it imports on its first use."""
        for name in ("parser", "grader"):
            # Each module warns once that its time limit is off. The filter hides this warning.
            logging.getLogger(f"math_verify.{name}").addFilter(
                lambda record: "Timeout is disabled" not in record.getMessage()
            )
        self("1", "1")


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
    """A verifier that returns the score of a reasoning-gym dataset for an answer.

    The answer is the text in the last <answer></answer>, or else the whole response.
    """

    dataset: str
    options: Mapping[str, Any]

    def __call__(self, response: str, entry: Mapping[str, Any]) -> float:
        """Returns the score of a response to an entry of the dataset."""
        from reasoning_gym.utils import extract_answer

        answer = extract_answer(response)
        if answer is None:
            answer = response.strip()
        return float(self._library_dataset.score_answer(answer, entry))

    def warm_up(self) -> None:
        """Imports the library and creates the dataset."""
        _ = self._library_dataset

    @functools.cached_property
    def _library_dataset(self) -> Any:
        import reasoning_gym as library

        return library.create_dataset(self.dataset, **self.options)


def story_mentions(response: str, words: tuple[str, ...]) -> float:
    """Returns the fraction of `words` that the story has as whole words, in upper or lower case."""
    used = set(re.findall(r"[a-z]+", response.lower()))
    return sum(word in used for word in words) / len(words)


def story_short_sentences(response: str, longest: int) -> float:
    """Returns the fraction of sentences that are finished and have at most `longest` words.

    The reward of a story without sentences is 0.
    """
    *finished, rest = re.split(r"[.!?]+[\"']?", response)
    lengths = [len(sentence.split()) for sentence in finished]
    total = len(lengths) + bool(rest.strip())
    return sum(0 < length <= longest for length in lengths) / total if total else 0.0


def story_dialogue(response: str, reference: None) -> float:
    """Returns 1 if the story has a quotation with an opening and a closing mark, else 0."""
    del reference
    return float(re.search(r'"[^"]*[a-zA-Z][^"]*"', response) is not None)


# Name in a config -> verifier, for the problems of a JSON-lines file.
MATHEMATICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "number": number,
    "math_verify": MathVerify(),
}
