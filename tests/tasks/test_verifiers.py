"""The verifiers agree with answers that were judged by hand."""

import fractions
import pathlib
import pickle
import subprocess
import sys

import pytest

from staleness_grpo.tasks import verifiers

ROOT = pathlib.Path(__file__).parents[2]


def run_program(name):
    """Runs a program of `tests/programs` in a process of its own."""
    command = [sys.executable, "-m", f"tests.programs.{name}"]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True)


def test_verifiers_import_no_jax():
    """A worker process starts faster without JAX, and needs less memory."""
    assert run_program("reward_worker_imports").returncode == 0


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
    ],
)
def test_the_final_number(text, expected):
    assert verifiers.final_number(text) == expected


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("It is 72.0", "72", 1.0),
        ("It is 72, not 71", "72", 0.0),
        ("no number", "72", 0.0),
        ("1,200", "1200", 1.0),
    ],
)
def test_number(response, reference, expected):
    assert verifiers.number(response, reference) == expected


def test_exact():
    assert verifiers.exact(" Paris\n", "Paris") == 1.0
    assert verifiers.exact("paris", "Paris") == 0.0


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        (r"The answer is $\frac{1}{2}$.", "0.5", 1.0),
        (r"so \boxed{x^2 + 2x + 1}", "(x+1)^2", 1.0),
        (r"so \boxed{\{1, 2\}}", r"\{2, 1\}", 1.0),
        ("The final answer is 72.", "72", 1.0),
        (r"so \boxed{73}", "72", 0.0),
        ("I do not know", "72", 0.0),
    ],
)
def test_math_verify(response, reference, expected):
    pytest.importorskip("math_verify", reason="the extra tasks is not installed")
    assert verifiers.MathVerify()(response, reference) == expected


def test_math_verify_starts_silently():
    """Its warnings that time limits are off would be wrong: the pool of workers has one."""
    pytest.importorskip("math_verify", reason="the extra tasks is not installed")
    result = run_program("warm_up_math_verify")
    assert (result.returncode, result.stderr) == (0, b"")


def test_reasoning_gym_judges_the_text_between_the_tags():
    library = pytest.importorskip("reasoning_gym", reason="the extra tasks is not installed")
    options = {"size": 3, "seed": 1, "operators": ["+"]}  # not hashable
    entry = library.create_dataset("basic_arithmetic", **options)[2]
    right = entry["answer"]
    verify = pickle.loads(pickle.dumps(verifiers.ReasoningGym("basic_arithmetic", options)))
    verify.warm_up()

    def score(response):
        return verify(response, entry)

    assert score(f"I think. <answer>{right}</answer>") == score(f" {right}\n") == 1.0
    assert score(f"{right} <answer>{int(right) + 1}</answer>") < 0.1
    assert score("") < 0.1


def test_stories():
    words = ("friend", "happy", "play", "smile")
    # Whole words count: 'smiles' is not 'smile'.
    assert verifiers.story_mentions("A friend! They PLAY, she smiles. My friend.", words) == 0.5
    assert verifiers.story_mentions("", words) == 0.0
    one_of_three = "He ran. She ran very very very far away! Oh"
    assert verifiers.story_short_sentences(one_of_three, 3) == pytest.approx(1 / 3)
    assert verifiers.story_short_sentences('He ran. "Go!" ', 3) == 1.0
    assert verifiers.story_short_sentences("no end", 3) == 0.0
    assert verifiers.story_short_sentences("", 3) == 0.0
    assert verifiers.story_short_sentences("... He ran.", 3) == 0.5  # the empty one is not short
    assert verifiers.story_dialogue('He said, "Hi!"', None) == 1.0
    assert verifiers.story_dialogue('He said, "Hi!', None) == 0.0
    assert verifiers.story_dialogue('"" "!"', None) == 0.0
