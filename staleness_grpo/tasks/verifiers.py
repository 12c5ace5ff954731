"""Verifiers: what a response to a problem of text is worth. They run in worker processes and import no JAX.

Each takes the response and the problem's reference, and returns a reward in [0, 1].
"""

import dataclasses
import fractions
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:(?:{INTEGER}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?)"
NUMBER = re.compile(
    rf"""
    (?P<part>(?:[/^×]|(?<=[A-Za-z])_|(?<=\d)[eE]|\\sqrt|[\]}}]\{{)[({{\s]*)?  # of a quotient, a power, a formula
    (?P<sign>(?<![\w)\]}}%-])-)?  # and not that of a difference or a range
    (?:(?P<whole>{INTEGER})(?:\ and)?\ +(?={DECIMAL}/))?  # 2 1/2
    (?P<numerator>{DECIMAL})(?:\s*/\s*(?P<denominator>{DECIMAL}))?
    """,
    re.VERBOSE,
)
BOX = r"\\boxed\s*\{"
TYPED = {  # typeset -> typed, in order
    "\N{MINUS SIGN}": "-", "\\$": "", "$": "", "{,}": ",", "\\,": "", "\\!": "", "\\%": "%", "\\times": "×",
    "\\cdot": "×", "\N{SUPERSCRIPT TWO}": "^2", "\N{SUPERSCRIPT THREE}": "^3",
}  # fmt: skip
ARGUMENT = r"\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))"  # of a LaTeX command: in braces, or one digit


def exact(response: str, reference: str) -> float:
    """1 if the response is the reference, but for white space around it."""
    return float(response.strip() == reference.strip())


def number(response: str, reference: str) -> float:
    """1 if the response's final number equals the reference's, as numbers: 1,200.00 is 1200, and 1/2 is 0.5.

    The final number is the last one in the last \\boxed{}, or the first one after the last '####' (the form of GSM8K's
    own answers), or the last one of the text. Read are 1,200.50, 3/4, 2 1/2, 1e3 and 1.5 x 10^3, typed or in LaTeX;
    units and their powers, currencies and % do not count. Where that is only a part of something that is not computed
    here (a product, a power, a root, another quotient), there is none.
    """
    found, expected = final_number(response), final_number(reference)
    return float(found is not None and found == expected)


def final_number(text: str) -> fractions.Fraction | None:
    """See `number`; None for a text without one, and for a box without one or without an end."""
    which = -1
    if re.search(BOX, text):
        text = last_box(text)
    elif "####" in text:
        which, text = 0, text.rpartition("####")[2]
    numbers = list(NUMBER.finditer(plain_numbers(text)))
    return _value(numbers[which]) if numbers else None


def _value(match: re.Match) -> fractions.Fraction | None:
    """What a NUMBER says; None if it is part of something else, and for what is no number: 1/0, 2 3/2."""
    parts = match["whole"] or "0", match["numerator"], match["denominator"] or "1"
    try:
        whole, numerator, denominator = (fractions.Fraction(part.replace(",", "")) for part in parts)
    except ValueError:  # thousands of digits
        return None
    if match["part"] or not denominator or (match["whole"] and numerator >= denominator):
        return None
    value = whole + numerator / denominator
    return -value if match["sign"] else value


def last_box(text: str) -> str:
    """What stands in the last \\boxed{}, with braces inside it in pairs; "" if it is not closed."""
    inside, depth = re.split(BOX, text)[-1], 1
    for place, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[:place]
    return ""


def plain_numbers(text: str) -> str:
    """Typeset numbers as they are typed: LaTeX's {,}, \\frac{1}{2}, \\times 10^3 and \\text{}; no powers of units."""
    for typeset, typed in TYPED.items():
        text = text.replace(typeset, typed)
    text = re.sub(r"(?<=\d)\s*\\([cdt]?frac)", r" \\\1", text)  # 2\frac{1}{2}: a space between them
    text = re.sub(rf"\\[cdt]?frac{ARGUMENT}{ARGUMENT}", r"\1\2/\3\4", text)
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\s*[×x*]\s*10\s*\^\s*\{?([-+]?\d+)\}?", r"e\1", text)
    text = re.sub(r"(?<=[A-Za-z])\^(?:\{-?\d+\}|-?\d+)", "", text)
    return re.sub(r"(\A\s*|=\s*)-\s+(?=[\d.])", r"\1-", text)  # not elsewhere: it may begin an item of a list


class MathVerify:
    """1 if the library math-verify takes the response's final answer, LaTeX or plain, for the reference's."""

    def __call__(self, response: str, reference: str) -> float:
        """See the class."""
        import math_verify as library

        # Its own time limits are alarms; the pool has one for the whole sample.
        gold = library.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        found = library.parse(response, parsing_timeout=None)
        return float(library.verify(gold, found, timeout_seconds=None))

    def warm_up(self) -> None:
        """Imports the library, and what it imports on the first use."""
        for name in ("parser", "grader"):  # each warns once that it has no time limit, which is meant
            logging.getLogger(f"math_verify.{name}").addFilter(
                lambda record: "Timeout is disabled" not in record.getMessage()
            )
        self("1", "1")


@dataclasses.dataclass(frozen=True)
class ReasoningGym:
    """A dataset's own score of what stands in the last <answer></answer>, or of the whole response without one."""

    dataset: str
    options: Mapping[str, Any]

    def __call__(self, response: str, entry: Mapping) -> float:
        """See the class; `entry` is the dataset's."""
        from reasoning_gym.utils import extract_answer

        answer = extract_answer(response)
        return float(self._library_dataset.score_answer(response.strip() if answer is None else answer, entry))

    def warm_up(self) -> None:
        """Imports the library and makes the dataset."""
        _ = self._library_dataset

    @functools.cached_property
    def _library_dataset(self):
        import reasoning_gym as library

        return library.create_dataset(self.dataset, **self.options)


def story_mentions(response: str, words: tuple[str, ...]) -> float:
    """The share of these words that the story goes on to use, whole words in any case."""
    used = set(re.findall(r"[a-z]+", response.lower()))
    return sum(word in used for word in words) / len(words)


def story_short_sentences(response: str, longest: int) -> float:
    """The share of its sentences that are finished and have at most `longest` words; 0 for none."""
    *finished, rest = re.split(r"[.!?]+[\"']?", response)
    lengths = [len(sentence.split()) for sentence in finished]
    total = len(lengths) + bool(rest.strip())
    return sum(0 < length <= longest for length in lengths) / total if total else 0.0


def story_dialogue(response: str, reference: None) -> float:
    """1 if somebody speaks: the story opens a quotation and closes it."""
    del reference
    return float(re.search(r'"[^"]*[a-zA-Z][^"]*"', response) is not None)


MATHEMATICS = {"exact": exact, "number": number, "math_verify": MathVerify()}
