"""Judges responses as text.

Each takes a response and the problem's reference, and returns a reward in [0, 1]. Verifiers run in
worker processes, so this module does not import JAX.
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
    # What makes the number a part of a quotient, a power or a formula.
    (?P<part>(?:[/^×]|(?<=[A-Za-z])_|(?<=\d)[eE]|\\sqrt|[\]}}]\{{)[({{\s]*)?
    (?P<sign>(?<![\w)\]}}%-])-)?  # not the minus of a difference or a range
    (?:(?P<whole>{INTEGER})(?:\ and)?\ +(?={DECIMAL}/))?  # 2 1/2
    (?P<numerator>{DECIMAL})(?:\s*/\s*(?P<denominator>{DECIMAL}))?
    """,
    re.VERBOSE,
)
BOX = r"\\boxed\s*\{"
# Typeset text -> the same as it is typed. The replacements are made in this order.
TYPED = {
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
# The argument of a LaTeX command: a number in braces, or one digit.
ARGUMENT = r"\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))"


def exact(response: str, reference: str) -> float:
    """Returns 1 if the response is the reference, apart from white space around them, else 0."""
    return float(response.strip() == reference.strip())


def number(response: str, reference: str) -> float:
    """Returns 1 if the final numbers of response and reference are equal, else 0.

    They are compared as numbers: 1,200.00 is 1200, and 1/2 is 0.5. See `final_number`.
    """
    given, expected = final_number(response), final_number(reference)
    return float(given is not None and given == expected)


def final_number(text: str) -> fractions.Fraction | None:
    """Returns the number that a text ends with, as its answer.

    The final number is the first of these that applies:
      1. the last number in the last \\boxed{};
      2. the first number after the last '####' (the form of GSM8K's own answers);
      3. the last number of the text.

    It can be written as 1,200.50, 3/4, 2 1/2, 1e3 or 1.5 x 10^3, typed or in LaTeX. Units and their
    powers, currencies and % are ignored.

    Returns:
      The number. None if there is no number at that place, or the box is not closed. None also if
      the number is only a part of something that is not computed here: a product, a power, a root,
      or another quotient.
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

    None if it is part of something else, and for what is not a number: 1/0, 2 3/2.
    """
    parts = match["whole"] or "0", match["numerator"], match["denominator"] or "1"
    try:
        whole, numerator, denominator = (
            fractions.Fraction(part.replace(",", "")) for part in parts
        )
    except ValueError:  # it has thousands of digits
        return None
    if match["part"] or not denominator or (match["whole"] and numerator >= denominator):
        return None
    value = whole + numerator / denominator
    return -value if match["sign"] else value


def last_box(text: str) -> str:
    """Returns the text in the last \\boxed{}, or "" if it is not closed.

    Braces inside it come in pairs.
    """
    inside, depth = re.split(BOX, text)[-1], 1
    for end, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[:end]
    return ""


def plain_numbers(text: str) -> str:
    """Rewrites typeset numbers as they are typed, and drops the powers of units.

    It knows LaTeX's {,}, \\frac{1}{2}, \\times 10^3, \\text{} and the like.
    """
    for typeset, typed in TYPED.items():
        text = text.replace(typeset, typed)
    # 2\frac{1}{2} gets a space between its parts.
    text = re.sub(r"(?<=\d)\s*\\([cdt]?frac)", r" \\\1", text)
    text = re.sub(rf"\\[cdt]?frac{ARGUMENT}{ARGUMENT}", r"\1\2/\3\4", text)
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s*[×x*]\s*10\s*\^\s*\{?([-+]?\d+)\}?", r"e\1", text)
    text = re.sub(r"(?<=[A-Za-z])\^(?:\{-?\d+\}|-?\d+)", "", text)
    # Only at the start and after '='. Elsewhere, "- 5" may be an item of a list.
    return re.sub(r"(\A\s*|=\s*)-\s+(?=[\d.])", r"\1-", text)


class MathVerify:
    """A verifier that asks the library math-verify whether two answers are equal.

    The reward is 1 if the response's final answer equals the reference, else 0. Answers may be
    typed or in LaTeX.
    """

    def __call__(self, response: str, reference: str) -> float:
        """Returns the reward of a response."""
        import math_verify as library

        # The library's own time limits are alarms. The pool limits the time of the whole sample.
        expected = library.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        given = library.parse(response, parsing_timeout=None)
        return float(library.verify(expected, given, timeout_seconds=None))

    def warm_up(self) -> None:
        """Imports the library, and all that it imports on the first use."""
        for name in ("parser", "grader"):
            # Each warns once that it has no time limit, which is intended.
            logging.getLogger(f"math_verify.{name}").addFilter(
                lambda record: "Timeout is disabled" not in record.getMessage()
            )
        self("1", "1")


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
    """A verifier that has a dataset of reasoning-gym score the answer.

    The answer is the text in the last <answer></answer>, or the whole response if there is none.
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
        """Imports the library and makes the dataset."""
        _ = self._library_dataset

    @functools.cached_property
    def _library_dataset(self) -> Any:
        import reasoning_gym as library

        return library.create_dataset(self.dataset, **self.options)


def story_mentions(response: str, words: tuple[str, ...]) -> float:
    """Returns the fraction of the words that the story uses, as whole words in any case."""
    used = set(re.findall(r"[a-z]+", response.lower()))
    return sum(word in used for word in words) / len(words)


def story_short_sentences(response: str, longest: int) -> float:
    """Returns the fraction of sentences that are finished and have at most `longest` words.

    A story without sentences gets 0.
    """
    *finished, rest = re.split(r"[.!?]+[\"']?", response)
    lengths = [len(sentence.split()) for sentence in finished]
    total = len(lengths) + bool(rest.strip())
    return sum(0 < length <= longest for length in lengths) / total if total else 0.0


def story_dialogue(response: str, reference: None) -> float:
    """Returns 1 if somebody speaks, that is if a quotation is opened and closed, else 0."""
    del reference
    return float(re.search(r'"[^"]*[a-zA-Z][^"]*"', response) is not None)


# The verifiers of a file of problems, by the names that a config gives them.
MATHEMATICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "number": number,
    "math_verify": MathVerify(),
}
