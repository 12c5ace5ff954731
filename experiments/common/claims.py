"""Defines the one kind of claim: a sentence, what was measured, and whether it holds."""

import dataclasses
from typing import Any

KEY = "claims"  # of summary.json


@dataclasses.dataclass(frozen=True)
class Claim:
    """Holds a sentence with its measurement.

    A claim of the paper, or one that was fixed before the measurement, holds or does not. A finding
    is a measurement that nobody predicted: its `holds` is None.
    """

    name: str  # unique within a summary
    claim: str  # a sentence
    measured: Any  # the number that the sentence is about, or a list of numbers
    interval: Any  # 95 % interval [low, high]; None for what has none, such as a largest value
    n: int  # independent units behind the number
    unit: str  # what `n` counts: seeds, problems, learner steps
    holds: bool | None
    paper: str = ""  # the paper's own number or statement; empty for what the paper does not say
    note: str = ""
    command: str = ""  # makes the measurement again

    def record(self) -> dict[str, Any]:
        """Returns the claim for summary.json."""
        return dataclasses.asdict(self)


def records(claims: list[Claim]) -> list[dict[str, Any]]:
    """Returns claims for summary.json.

    Raises:
      ValueError: if two have the same name.
    """
    names = [claim.name for claim in claims]
    if len(set(names)) < len(names):
        raise ValueError(f"two claims have one name: {sorted(names)}")
    return [claim.record() for claim in claims]


def read(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims of a summary.json."""
    return [Claim(**fields) for fields in summary[KEY]]
