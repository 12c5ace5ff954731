"""The numbers that texts give as answers agree with those that were read by hand."""

import fractions
import json

import pytest

from staleness_grpo.tasks import numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 3 + 4 = 7 apples.", 7),
        ("so 12 dogs, 30 cats\n#### 42", 42),
        ("#### 5 of the 9", 5),  # the number behind the marker, not the last one
        ("#### none", None),
        (r"\boxed{12} and then \boxed{1,234.50}", fractions.Fraction(2469, 2)),
        (r"of 8, \boxed{$-3$} remain 100", -3),
        ("It costs $1,200.", 1200),
        ("one half is 1/2", fractions.Fraction(1, 2)),
        ("divided by nothing: 3/0", None),
        (r"\boxed{\frac{1}{2}}", fractions.Fraction(1, 2)),
        (r"\boxed{5} no: \boxed{\dfrac{7}{2}}", fractions.Fraction(7, 2)),
        (r"\boxed{\text{18}} dollars, over 3 days", 18),
        (r"\boxed{18 \text{ dollars}}", 18),
        (r"it is 5, \boxed{\text{five}}", None),  # only the box is read, and it has no number
        (r"of 12 \boxed{1", None),  # cut off: it may be 1, 12 or 100
        (r"\boxed{1{,}200}", 1200),
        (r"1\,200\,000", 1_200_000),
        ("\N{MINUS SIGN}5", -5),
        ("-$5", -5),
        (r"-\$5.50", fractions.Fraction(-11, 2)),
        ("10-5", 5),  # a range or a difference
        ("f(2)-5", 5),
        ("= -5", -5),
        ("3,4", 4),  # a list
        ("1,2345", 2345),
        ("1,234,567", 1_234_567),
        (".5", fractions.Fraction(1, 2)),
        ("no idea", None),
        ("", None),
        (r"\boxed{2\frac{1}{2}}", fractions.Fraction(5, 2)),
        (r"\boxed{-2 \tfrac12}", fractions.Fraction(-5, 2)),
        ("1,000 1/2 or 2 and 1/2", fractions.Fraction(5, 2)),
        (r"2\frac{3}{2}", None),  # a product
        (r"\boxed{\frac{-1}{2}}", fractions.Fraction(-1, 2)),
        (r"x = -\frac{3.5}{2}", fractions.Fraction(-7, 4)),
        (r"\frac{1,000}{2} or 1 / 2", fractions.Fraction(1, 2)),
        (r"\boxed{\frac{1,000}{2}}", 500),
        (r"\boxed{\frac{x+1}{2}}", None),
        (r"\boxed{\frac{\sqrt{3}}{2}}", None),
        (r"\boxed{3\sqrt2}", None),
        ("x/2", None),
        (r"\boxed{15\text{ cm}^2}", 15),
        ("24 m^2", 24),
        ("24 m²", 24),
        ("7^2 and x_2", None),
        ("10²", None),
        (r"\boxed{90^\circ}", 90),
        (r"\boxed{1.5 \times 10^3}", 1500),
        (r"2\cdot10^{-2}", fractions.Fraction(1, 50)),
        ("2 x 10^{3}", 2000),
        (r"3 \times 4", None),
        ("so 2*3", None),
        ("The answer is 10**3", None),
        ("it is 2 * 3", None),
        ("it is 3 x 4", None),
        ("3x4", None),
        ("12 ÷ 4", None),
        ("The answer is **7**", 7),
        ("of 5 apples **7** are left", 7),
        ("* 3\n* 4", 4),
        ("2 x", 2),
        ("1e3", 1000),
        ("1e99999", None),  # the number would be too long
        ("9" * 5000, None),
        (r"\boxed{- 5}", -5),
        ("x = - 5", -5),
        ("5 pears\n- 6 apples", 6),  # an item of a list
        ("10 - 5", 5),
        (r"\boxed {18} or 19", 18),
        (r"5%-10%, $5\%$-$10\%$", 10),
        ("the room--75", 75),
        ("#### 3 no\n#### 4", 4),
        (r"\boxed{5} #### 6", 5),
        (r"\boxed{\textbf{1}8}", 18),
        (r"\boxed{\mathbf{1}8}", 18),
        (r"\boxed{\mathrm{1}8}", 18),
        (r"1\!\,200", 1200),
        (r"\boxed{1\ 234}", 1234),
        ("1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567", 1_234_567),
        ("12~345", 12_345),
        (r"1\ 23", 23),  # no group of three digits
        ("It leaves at 22:30.", None),
        ("It is 1768_9.", None),  # a number in base 9
        ("#### 10^2", None),
        ("#### 11:30", None),
    ],
)
def test_the_final_number(text, expected):
    assert numbers.final_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("72", 72),
        ("-$5.50", fractions.Fraction(-11, 2)),
        ("€5", 5),
        ("USD 5", 5),
        ("50%", 50),
        ("15 km/h", 15),
        ("5 square meters.", 5),
        (r"15\text{ cm}^2", 15),
        ("25 °C", 25),
        (r"90^\circ", 90),
        ("x_1 = 2 1/2", fractions.Fraction(5, 2)),
        (r"p = -\frac{1}{3}", fractions.Fraction(-1, 3)),
        (r"\boxed{1{,}200}", 1200),
        ("1,200 eggs", 1200),
        (r"1\ 234", 1234),
        ("11:30", None),
        ("1768_9", None),
        ("10^2", None),
        ("3 or 4", None),
        ("3 apples and 4 pears", None),
        ("(3,4)", None),
        ("3,4", None),
        ("10-12", None),
        ("3:4", None),
        ("2x", None),
        ("2 pi", None),
        (r"2\sqrt{3}", None),
        ("3x+2", None),
        ("5!", None),
        ("x = y = 2", None),
        ("7 R 3", None),
        ("5 million", None),
        ("5 pm", None),
        ("5 p.m.", None),
        ("5 ft 3 in", None),
        ("about 5", None),
        ("1/0", None),
        ("half", None),
        ("", None),
        ("5 " + "a" * 10_000 + "!", None),  # found in no time
    ],
)
def test_the_number_that_is_the_whole_text(text, expected):
    assert numbers.whole_number(text) == expected


def test_the_answers_of_gsm8k_are_whole_numbers(data):
    answers = [
        json.loads(line)["answer"].rpartition("####")[2]
        for path in sorted((data / "gsm8k").rglob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len(answers) > 1000
    assert [answer for answer in answers if numbers.whole_number(answer) is None] == []
