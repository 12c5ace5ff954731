"""Defines rewards that are weighted sums of several components.

Verifiers run in worker processes, so this module does not import JAX.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from staleness_grpo.errors import FieldError, require, require_choice
from staleness_grpo.tasks.verifiers import MATHEMATICS

Verifier = Callable[[str, Any], float]
NAMES = (*MATHEMATICS, "format", "length")  # of the components that a config can weigh
UNITS = ("characters", "words")
# Fields of metrics.jsonl are named reward_NAME, and these are other fields.
TAKEN_NAMES = ("std_in_group", "errors", "timeouts")


@dataclasses.dataclass(frozen=True)
class AnswerAfter:
    """A verifier that judges only the text after the last marker of a response.

    A response without the marker gets 0.
    """

    verify: Verifier
    marker: str

    def __call__(self, response: str, reference: Any) -> float:
        """Returns the reward of a response."""
        _, found, answer = response.rpartition(self.marker)
        return float(self.verify(answer, reference)) if found else 0.0

    def warm_up(self) -> None:
        """Warms the verifier up."""
        _warm_up(self.verify)


@dataclasses.dataclass(frozen=True)
class Format:
    """A verifier that returns 1 if the whole response matches a regular expression, else 0.

    White space around the response is ignored. A '.' of the expression also matches line ends.
    """

    pattern: str

    def __call__(self, response: str, reference: Any) -> float:
        """Returns 1 or 0."""
        del reference
        return float(re.fullmatch(self.pattern, response.strip(), re.DOTALL) is not None)


@dataclasses.dataclass(frozen=True)
class Length:
    """A verifier that returns 0 up to a length `low`, 1 from `high` on, and a line between them.

    With a negative weight it punishes long responses, as the soft overlong punishment of DAPO does
    (arXiv 2503.14476, which counts tokens).
    """

    low: int
    high: int
    unit: str  # one of UNITS

    def __call__(self, response: str, reference: Any) -> float:
        """Returns a number from 0 to 1."""
        del reference
        length = len(response.split()) if self.unit == "words" else len(response)
        return min(max((length - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A verifier whose reward is the weighted sum of several verifiers, its components.

    The mean of each component is recorded as `reward_NAME` in metrics.jsonl.

    Args:
      verifiers: name -> verifier of each component, called in this order.
      weights: name -> weight. A component with weight 0 is only recorded.

    Raises:
      FieldError: there is no component, a weight is missing, belongs to no component or is not
        finite, or a name cannot be that of a field.
    """

    verifiers: Mapping[str, Verifier]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        require(len(self.verifiers) > 0, "verifiers", "give at least one component")
        for name in self.verifiers:
            usable = name.isidentifier() and name not in TAKEN_NAMES
            hint = "name a component by letters, digits and _, and not as another metric"
            require(usable, "verifiers", hint, name)
        for name in {**self.verifiers, **self.weights}:
            field, weight = f"weights.{name}", self.weights.get(name)
            require(name in self.verifiers, field, f"choose one of {', '.join(self.verifiers)}")
            is_number = isinstance(weight, int | float) and math.isfinite(weight)
            require(is_number, field, "give a number", weight)

    @property
    def component_names(self) -> tuple[str, ...]:
        """Returns the names of the components, in order."""
        return tuple(self.verifiers)

    def components(self, response: str, reference: Any) -> list[float]:
        """Returns each component of a response, before its weight."""
        return [float(verify(response, reference)) for verify in self.verifiers.values()]

    def total(self, components: Sequence[float]) -> float:
        """Returns the reward of these components."""
        pairs = zip(self.verifiers, components, strict=True)
        return sum(self.weights[name] * component for name, component in pairs)

    def __call__(self, response: str, reference: Any) -> float:
        """Returns the reward of a response."""
        return self.total(self.components(response, reference))

    def warm_up(self) -> None:
        """Warms all components up."""
        for verify in self.verifiers.values():
            _warm_up(verify)


def _warm_up(verify: Verifier) -> None:
    getattr(verify, "warm_up", lambda: None)()


def make_verifier(
    verifier: str,
    *,
    answer_after: str | None,
    reward_weights: Mapping[str, float],
    format_pattern: str | None,
    length_range: Sequence[int] | None,
    length_unit: str | None,
) -> Verifier:
    """Returns the verifier that the fields of a task describe.

    Args:
      verifier: a key of MATHEMATICS. It is a component with weight 1, unless `reward_weights` has
        another weight for it. Without other weights it is the whole reward.
      answer_after: the marker after which MATHEMATICS judges a response; None: all of it is judged.
      reward_weights: the weights of components in NAMES.
      format_pattern, length_range, length_unit: see Format and Length; None: not given.

    Raises:
      FieldError: a field cannot be used.
    """
    require_choice({"verifier": verifier}, "verifier", tuple(MATHEMATICS))
    hint = "give the text before the answer, such as </think>, or leave the field out"
    require(answer_after is None or answer_after != "", "answer_after", hint)
    correctness: dict[str, Verifier] = {
        name: verify if answer_after is None else AnswerAfter(verify, answer_after)
        for name, verify in MATHEMATICS.items()
    }
    _check_weights(reward_weights)
    settings = {
        "format_pattern": ("format", format_pattern),
        "length_range": ("length", length_range),
        "length_unit": ("length", length_unit),
    }
    for field, (component, value) in settings.items():
        hint = f"it needs the weight reward_weights.{component}: give one, or leave {field} out"
        require(value is None or component in reward_weights, field, hint, value)
    if not reward_weights:
        return correctness[verifier]
    weights = {verifier: 1.0} | {name: float(weight) for name, weight in reward_weights.items()}
    hint = "every weight is 0, so every reward is: give one that is not"
    require(any(weights.values()), "reward_weights", hint)
    parts: dict[str, Verifier] = {}
    # The order is that of NAMES, whatever the order in a config is. Checkpoints hold components in
    # this order.
    for name in sorted(weights, key=NAMES.index):
        if name == "format":
            parts[name] = _format(format_pattern)
        elif name == "length":
            parts[name] = _length(length_range, length_unit)
        else:
            parts[name] = correctness[name]
    return WeightedSum(parts, weights)


def _check_weights(weights: Mapping[str, Any]) -> None:
    """Raises FieldError if weights of a config cannot be used."""
    for name, weight in weights.items():
        field = f"reward_weights.{name}"
        require(name in NAMES, field, f"no such component: choose one of {', '.join(NAMES)}")
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        require(is_number and math.isfinite(weight), field, "give a finite number", weight)


def _format(pattern: Any) -> Format:
    """Returns the component of a regular expression. Raises FieldError if it is none."""
    hint = "reward_weights.format needs it: give a regular expression that responses must match"
    require(isinstance(pattern, str), "format_pattern", hint, pattern)
    try:
        re.compile(pattern)
    except re.error as error:
        hint = f"this is not a regular expression of Python ({error}): correct it"
        raise FieldError("format_pattern", hint, pattern) from error
    return Format(pattern)


def _length(bounds: Any, unit: str | None) -> Length:
    """Returns the component of a response's length. Raises FieldError for bounds or unit."""
    unit = "characters" if unit is None else unit
    require_choice({"length_unit": unit}, "length_unit", UNITS)
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2
    usable = is_pair and all(isinstance(bound, int) for bound in bounds)
    hint = "reward_weights.length needs it: give (LOW, HIGH) with 0 <= LOW < HIGH, as (200, 800)"
    require(usable and 0 <= bounds[0] < bounds[1], "length_range", hint, bounds)
    low, high = bounds
    return Length(low, high, unit)
