"""Verifiers: what a response to a problem of text is worth. They run in worker processes and import no JAX.

Each takes the response and the problem's reference, and returns a reward in [0, 1].
"""

import fractions
import functools
import re
from collections.abc import Mapping

NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"


def exact(response: str, reference: str) -> float:
    """1 if the response is the reference, but for white space around it."""
    return float(response.strip() == reference.strip())


def number(response: str, reference: str) -> float:
    """1 if the response's final number equals the reference's, as numbers: 1,200.00 is 1200, and 1/2 is 0.5.

    The final number is the one in the last \\boxed{}, or the first one after the last '####' (the form of GSM8K's own
    answers), or the last one of the text.
    """
    found, expected = final_number(response), final_number(reference)
    return float(found is not None and found == expected)


def final_number(text: str) -> fractions.Fraction | None:
    """See `number`; None for a text without one."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    if boxed:
        text = boxed[-1]
    elif "####" in text:
        marked = re.search(NUMBER, text.rpartition("####")[2])
        text = marked[0] if marked else ""
    numbers = re.findall(NUMBER, text)
    if not numbers:
        return None
    numerator, _, denominator = numbers[-1].replace(",", "").partition("/")
    value = fractions.Fraction(numerator)
    return value / int(denominator) if denominator and int(denominator) else value


def math_verify(response: str, reference: str) -> float:
    """1 if the library math-verify takes the response's final answer, LaTeX or plain, for the reference's."""
    import math_verify as library

    # Its own time limits are alarms; the pool has one for the whole sample.
    gold = library.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    found = library.parse(response, parsing_timeout=None)
    return float(library.verify(gold, found, timeout_seconds=None))


def reasoning_gym(response: str, entry: Mapping, *, dataset: str, options: tuple[tuple[str, object], ...]) -> float:
    """The dataset's own score of what stands in the last <answer></answer>, or of the whole response without one."""
    from reasoning_gym.utils import extract_answer

    answer = extract_answer(response)
    return float(_dataset(dataset, options).score_answer(response.strip() if answer is None else answer, entry))


@functools.cache
def _dataset(name: str, options: tuple[tuple[str, object], ...]):
    import reasoning_gym as library

    return library.create_dataset(name, **dict(options))


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


MATHEMATICS = {"exact": exact, "number": number, "math_verify": math_verify}
