"""Reads the number that a text gives as its answer, in plain text or in LaTeX."""

import fractions
import re

INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:(?:{INTEGER}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\w))?)"
NUMBER = re.compile(
    rf"""
    # Text before the number that makes it a part of a quotient, a power, a time or a formula.
    (?P<part>(?:
      [/^×÷]|(?<=\w)_|(?<=\d):|(?<=\d)[eE]|\\sqrt|[\]}}]\{{
      |(?<=\d)\*\*?(?=\d)|(?<=\d\ )\*(?=\ \d)|(?<=\d)x(?=\d)|(?<=\d\ )x(?=\ \d)  # but not **7**
    )[({{\s]*)?
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
# Signs that only group the digits of a number: 1\ 234, or 1 234 with a narrow space.
GROUPING = r"(?:\\[ ;:]|[~\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}])"
GROUPED = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{GROUPING}\d{{3}})+(?!\d)")
CURRENCIES = r"(?:[€£¥₹]|(?:US|USD|EUR|GBP|Rs)\b\.?)"
UNIT_WORD = re.compile(r"[%°€£¥₹]?[^\W\d_]*\.?")
MAX_UNIT_WORDS = 5  # of a unit such as "km / h" or "square meters"
# Words after a number that make it a part of another value.
NO_UNITS = frozenset(
    "or and to plus minus times mod over x y z i e n k r pi π am pm "
    "hundred thousand million billion trillion dozen remainder".split()
)


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
          product, a power, a root, a time or another quotient.
    """
    position = -1
    if re.search(BOX, text):
        text = last_box(text)
    elif "####" in text:
        position, text = 0, text.rpartition("####")[2]
    numbers = list(NUMBER.finditer(plain_numbers(text)))
    if not numbers:
        return None
    chosen = numbers[position]
    continues = any(later["part"] and later.start() == chosen.end() for later in numbers[1:])
    return None if continues else _value(chosen)


def whole_number(text: str) -> fractions.Fraction | None:
    """Returns the number that a text consists of; None if the text says anything else.

    Besides the number the text may have a currency, a unit or %, and one "x =" before it. So
    11:30, 1768_9, "3 or 4" and 2x are no whole numbers. A \\boxed{} or '####' is read as
    `final_number` reads it.
    """
    if re.search(BOX, text):
        text = last_box(text)
    elif "####" in text:
        text = text.rpartition("####")[2]
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = re.sub(r"\A\s*[A-Za-z]\w*\s*=", "", plain_numbers(text)).strip()
    text = re.sub(rf"\A(-?)\s*{CURRENCIES}\s*", r"\1", text)
    match = NUMBER.match(text)
    if match is None:
        return None
    words = re.split(r"[\s/·]+", text[match.end() :].strip(" ."))
    is_unit = len(words) <= MAX_UNIT_WORDS and all(map(UNIT_WORD.fullmatch, words))
    is_more = bool(NO_UNITS & {word.strip(".").lower() for word in words})
    return _value(match) if is_unit and not is_more else None


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
    text = GROUPED.sub(lambda match: re.sub(GROUPING, "", match[0]), text)
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
