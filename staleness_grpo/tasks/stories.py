"""Defines the task of children's stories, which plain language models can do."""

import itertools
from collections.abc import Callable
from typing import Any

from staleness_grpo.errors import require_choice
from staleness_grpo.policy.huggingface.tokenizer import Tokenizer
from staleness_grpo.tasks import verifiers
from staleness_grpo.tasks.problems import TextProblem
from staleness_grpo.tasks.prompted import PromptedTask

# The openings resemble the stories on which the tinyllamas models were trained.
NAMES = ("Lily", "Tim", "Sara", "Ben", "Mia", "Tom", "Amy", "Max")
HEROES = ("girl", "boy", "cat", "dog", "bird", "bunny", "bear", "fish")
MOODS = ("little", "big", "happy", "sad")
OPENING = "Once upon a time, there was a {mood} {hero} named {name}."

MANY_WORDS = (
    *("friend", "happy", "play", "smile", "big", "little", "park", "mom"),
    *("day", "home", "love", "tree", "fun", "sun", "ball", "bird"),
)

# Name of a rule -> (verifier, reference).
STORY_RULES: dict[str, tuple[Callable[[str, Any], float], Any]] = {
    "dialogue": (verifiers.story_dialogue, None),
    "mentions": (verifiers.story_mentions, ("friend", "happy", "play", "smile")),
    # So many that a short response cannot have them all: the reward has no early ceiling.
    "many_mentions": (verifiers.story_mentions, MANY_WORDS),
    "short_sentences": (verifiers.story_short_sentences, 6),
}


def stories_task(tokenizer: Tokenizer, *, rule: str, max_response_length: int) -> PromptedTask:
    """Makes a task whose prompts are openings of children's stories.

    A plain language model can continue them. No response is right or wrong.

    Args:
      tokenizer: the checkpoint's tokenizer.
      rule: a key of STORY_RULES, which decides what the reward measures.
      max_response_length: R, in tokens.

    Raises:
      FieldError: a field cannot be used.
    """
    require_choice({"rule": rule}, "rule", tuple(STORY_RULES))
    verify, reference = STORY_RULES[rule]
    problems = [
        TextProblem(OPENING.format(mood=mood, hero=hero, name=name), reference)
        for mood, hero, name in itertools.product(MOODS, HEROES, NAMES)
    ]
    return PromptedTask(tokenizer, problems, verify, max_response_length=max_response_length)
