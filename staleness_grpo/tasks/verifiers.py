"""Defines verifiers, which judge the text of a response.

A verifier takes a response and the reference of its problem, and returns a reward in [0, 1].
Verifiers run in worker processes, so this module does not import JAX.
"""

import dataclasses
import fractions
import functools
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:(?:{INTEGER}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?)"
NUMBER = re.compile(
    rf"""
    # Text before the number that makes it a part of a quotient, a power or a formula.
    (?P<part>(?:[/^×]|(?<=[A-Za-z])_|(?<=\d)[eE]|\\sqrt|[\]}}]\{{)[({{\s]*)?
    (?P<sign>(?<![\w)\]}}%-])-)?  # but not the minus sign of a difference or a range
    (?:(?P<whole>{INTEGER})(?:\ and)?\ +(?={DECIMAL}/))?  # the 2 of 2 1/2
    (?P<numerator>{DECIMAL})(?:\s*/\s*(?P<denominator>{DECIMAL}))?
    """,
    re.VERBOSE,
)
BOX = r"\\boxed\s*\{"
# Typeset text -> its plain form. The replacements are made in this order.
PLAIN_FORMS = {
    "\N{MINUS SIGN}": "-",
    "\\$": "",
    "$": "",
    "{,}": ",",
    "\\,": "",
    "\\!": "",
    "\\%": "%",
    "\\times": "×",
    "\\cdot": "×",
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{SUPERSCRIPT THREE}": "^3",
}
# Matches the argument of a LaTeX command: a number in braces, or a single digit.
LATEX_ARGUMENT = r"\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))"


def exact(response: str, reference: str) -> float:
    """Returns 1 if response and reference are equal, except for white space around them, else 0."""
    return float(response.strip() == reference.strip())


def number(response: str, reference: str) -> float:
    """Returns 1 if the final numbers of response and reference are equal, else 0.

    `final_number` finds the two numbers. Their values are compared, so 1,200.00 equals 1200, and
    1/2 equals 0.5.
    """
    answer, expected = final_number(response), final_number(reference)
    return float(answer is not None and answer == expected)


def final_number(text: str) -> fractions.Fraction | None:
    """Returns the number that a text gives as its final answer.

    The place of the final number is the first of these that applies:
      1. If the text has a \\boxed{}: the last number in the last \\boxed{}.
      2. If the text has a '####', like GSM8K's own answers: the first number after the last '####'.
      3. Otherwise: the last number of the text.

    The number can be written as 1,200.50, 3/4, 2 1/2, 1e3 or 1.5 x 10^3, in plain text or in LaTeX.
    Units and their powers, currencies and % are ignored.

    Returns:
      The number, or None in each of these cases:
        - There is no number at this place, or the box is not closed.
        - The number is only a part of an expression that this function does not evaluate: a
          product, a power, a root or another quotient.
    """
    position = -1
    if re.search(BOX, text):
        text = last_box(text)
    elif "####" in text:
        position, text = 0, text.rpartition("####")[2]
    numbers = list(NUMBER.finditer(plain_numbers(text)))
    return _value(numbers[position]) if numbers else None


def _value(match: re.Match) -> fractions.Fraction | None:
    """Returns the value of a match of NUMBER.

    The value is None if the number is a part of another expression, or is not valid: 1/0 or 2 3/2.
    """
    parts = match["whole"] or "0", match["numerator"], match["denominator"] or "1"
    try:
        whole, numerator, denominator = (
            fractions.Fraction(part.replace(",", "")) for part in parts
        )
    except ValueError:  # Python does not convert numbers with thousands of digits
        return None
    if match["part"] or not denominator or (match["whole"] and numerator >= denominator):
        return None
    value = whole + numerator / denominator
    return -value if match["sign"] else value


def last_box(text: str) -> str:
    """Returns the text in the last \\boxed{}, or "" if the box is not closed.

    The text may contain pairs of braces.
    """
    after_opening, depth = re.split(BOX, text)[-1], 1
    for end, character in enumerate(after_opening):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return after_opening[:end]
    return ""


def plain_numbers(text: str) -> str:
    """Returns the text with typeset numbers in plain form, and without the powers of units.

    The function converts LaTeX such as {,}, \\frac{1}{2}, \\times 10^3 and \\text{}.
    """
    for typeset, plain in PLAIN_FORMS.items():
        text = text.replace(typeset, plain)
    # A space is added between the 2 and the fraction of 2\frac{1}{2}.
    text = re.sub(r"(?<=\d)\s*\\([cdt]?frac)", r" \\\1", text)
    text = re.sub(rf"\\[cdt]?frac{LATEX_ARGUMENT}{LATEX_ARGUMENT}", r"\1\2/\3\4", text)
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s*[×x*]\s*10\s*\^\s*\{?([-+]?\d+)\}?", r"e\1", text)
    text = re.sub(r"(?<=[A-Za-z])\^(?:\{-?\d+\}|-?\d+)", "", text)
    # The space in "- 5" is removed only at the start and after '='. Elsewhere "- 5" may be an item
    # of a list.
    return re.sub(r"(\A\s*|=\s*)-\s+(?=[\d.])", r"\1-", text)


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
