"""The verifiers agree with answers that were judged by hand."""

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
