"""Rewards that are weighted sums, and judgments of what follows a marker."""

import math
import pickle
import re
from typing import Any

import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.tasks import components, own, verifiers
from staleness_grpo.tasks.components import AnswerAfter, Format, Length, WeightedSum

UNSET: dict[str, Any] = dict(
    answer_after=None, reward_weights={}, format_pattern=None, length_range=None, length_unit=None
)


def made(verifier="number", **fields):
    return components.make_verifier(verifier, **(UNSET | fields))


def test_without_other_fields_the_verifier_itself_judges():
    for name, verify in verifiers.MATHEMATICS.items():
        assert made(name) is verify


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("it is 3</think>It is 2.", 1.0),
        ("it is 2</think>It is 3.", 0.0),
        ("it is 2", 0.0),
        ("it is 2</think>", 0.0),
        ("</think>3</think>2", 1.0),  # the last marker counts
        ("</think>2</think>3", 0.0),
    ],
)
def test_only_what_follows_the_marker_is_judged(response, reward):
    verify = pickle.loads(pickle.dumps(made(answer_after="</think>")))
    assert verify(response, "2") == reward


def test_an_empty_answer_is_not_given_for_a_missing_marker():
    """The text without a marker is not judged at all: it would be right by another verifier."""
    assert AnswerAfter(verifiers.exact, "</think>")("", "") == 0.0


@pytest.mark.parametrize(
    ("response", "matches"),
    [
        ("<think>a\nb</think>2", 1.0),
        ("  <think></think>2\n", 1.0),
        ("x<think></think>2", 0.0),
        ("<think></think>", 0.0),
        ("", 0.0),
    ],
)
def test_the_whole_response_must_match_the_format(response, matches):
    assert Format("<think>.*</think>.+")(response, "2") == matches


def test_the_length_rises_from_0_to_1_between_its_bounds():
    characters, words = Length(2, 6, "characters"), Length(1, 3, "words")
    texts = ["", "ab", "abc", "abcdef", "abcdefghi"]
    assert [characters(text, None) for text in texts] == [0, 0, 0.25, 1, 1]
    texts = ["", "long-word", "two  words\n", "three short words", "and four of them"]
    assert [words(text, None) for text in texts] == [0, 0, 0.5, 1, 1]


def test_the_reward_is_the_weighted_sum_of_the_components():
    verify = made(
        reward_weights=dict(format=0.2, length=-0.5, exact=0),
        answer_after="</think>",
        format_pattern="<think>.*",
        length_range=(10, 30),
    )
    verify = pickle.loads(pickle.dumps(verify))
    assert verify.component_names == ("exact", "number", "format", "length")
    for response, parts in (
        ("<think>1</think>2", [1, 1, 1, 0.35]),
        ("<think>1</think>It is 2.", [0, 1, 1, 0.7]),
        ("<think>1</think>3", [0, 0, 1, 0.35]),
        ("</think>2", [1, 1, 0, 0]),
        ("2", [0, 0, 0, 0]),
    ):
        assert verify.components(response, "2") == pytest.approx(parts, rel=1e-12)  # rounding
        expected = parts[1] + 0.2 * parts[2] - 0.5 * parts[3]
        assert verify(response, "2") == pytest.approx(expected, rel=1e-12)


def test_the_order_of_components_is_not_that_of_the_config():
    """Checkpoints hold components by place, and a resumed run may name them in another order."""
    weights = dict(math_verify=1.0, exact=2.0)
    reverse = dict(reversed(weights.items()))
    names = [made(reward_weights=given).component_names for given in (weights, reverse)]
    assert names == [("exact", "number", "math_verify")] * 2


def test_the_verifier_has_weight_1_unless_another_is_given():
    assert made(reward_weights=dict(exact=0.5)).weights == dict(number=1.0, exact=0.5)
    assert made(reward_weights=dict(number=2)).weights == dict(number=2.0)


class Warmed:
    """A verifier that counts its warm-ups."""

    count = 0

    def __call__(self, response, reference):
        return 1.0

    def warm_up(self):
        self.count += 1


def test_the_warm_up_reaches_every_verifier():
    warmed = Warmed()
    WeightedSum(
        {"a": AnswerAfter(warmed, "x"), "b": verifiers.exact, "c": warmed}, dict(a=1, b=1, c=1)
    ).warm_up()
    assert warmed.count == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(verifier="vote"), "^verifier=vote: choose one of exact, number, math_verify"),
        (dict(answer_after=""), "^answer_after=?.*: give the text before the answer"),
        (
            dict(reward_weights=dict(style=1.0)),
            "^reward_weights.style.*: no such component: choose one of .*format, length",
        ),
        (dict(reward_weights=dict(exact=math.nan)), "^reward_weights.exact=nan: give a finite"),
        (dict(reward_weights=dict(exact="1")), "^reward_weights.exact=1: give a finite number"),
        (dict(reward_weights=dict(exact=True)), "^reward_weights.exact=True: give a finite"),
        (dict(reward_weights=dict(number=0)), "^reward_weights.*: every weight is 0"),
        (dict(reward_weights=dict(format=1)), "^format_pattern=None: reward_weights.format needs"),
        (
            dict(reward_weights=dict(format=1), format_pattern="("),
            r"^format_pattern=\(: this is not a regular expression",
        ),
        (dict(format_pattern="x"), "^format_pattern=x: it needs the weight reward_weights.format"),
        (dict(length_range=(1, 2)), r"^length_range=\(1, 2\): it needs .*reward_weights.length"),
        (dict(length_unit="words"), "^length_unit=words: it needs .*reward_weights.length"),
        (dict(reward_weights=dict(length=-1)), "^length_range=None: reward_weights.length needs"),
        (
            dict(reward_weights=dict(length=-1), length_range=(1, 2), length_unit="tokens"),
            "^length_unit=tokens: choose one of characters, words",
        ),
    ]
    + [
        (
            dict(reward_weights=dict(length=-1), length_range=bounds),
            f"^length_range={re.escape(str(bounds))}: .*0 <= LOW < HIGH",
        )
        for bounds in [(2, 2), (3, 2), (-1, 2), (1,), (1, 2, 3), (1.5, 2), "12", 5]
    ],
)
def test_fields_of_the_reward_that_cannot_be_used_are_refused(fields, message):
    with pytest.raises(FieldError, match=message) as error:
        made(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ((), {}),
        (("right",), {}),
        (("right",), {"right": 1.0, "wrong": 1.0}),
        (("right",), {"right": math.inf}),
        (("two words",), {"two words": 1.0}),
        (("errors",), {"errors": 1.0}),
    ],
)
def test_a_sum_of_ones_own_with_wrong_names_or_weights_is_refused(names, weights):
    with pytest.raises(FieldError):
        WeightedSum(dict.fromkeys(names, verifiers.exact), weights)


class Asked:
    """A text task of one's own, as far as its description looks at it."""

    fingerprint = "the problems"
    vocab_size = max_response_length = prompt_length = num_prompts = 4
    pad_token = end_token = 0

    def __init__(self, verify):
        self.verify = verify

    def prompts(self, index_N):
        raise NotImplementedError

    def decode(self, tokens):
        raise NotImplementedError

    def samples(self, index_N, tokens_NxGxR, mask_NxGxR):
        raise NotImplementedError


def test_another_component_or_weight_is_another_task():
    sums = [
        WeightedSum({"a": verify}, {"a": weight})
        for verify, weight in (
            (verifiers.exact, 1.0),
            (verifiers.number, 1.0),
            (verifiers.exact, 2.0),
            (Length(1, 2, "words"), 1.0),
            (Length(1, 3, "words"), 1.0),
        )
    ]
    two = {"a": Length(1, 2, "words"), "b": Length(1, 3, "words")}
    sums += [
        WeightedSum(verify, dict(a=1.0, b=1.0)) for verify in (two, dict(reversed(two.items())))
    ]
    digests = [own.describe(Asked(verify))["digest"] for verify in sums]
    assert len(set(digests)) == len(sums)
    assert own.describe(Asked(sums[0]))["digest"] == digests[0]
