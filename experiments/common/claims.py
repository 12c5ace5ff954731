"""Defines a claim, which is a sentence with its measurement, and stores claims in summary.json."""

import dataclasses
from typing import Any

KEY = "claims"  # the field of summary.json that holds the list of claims


@dataclasses.dataclass(frozen=True)
class Claim:
    """Holds a sentence, its measurement, and whether the measurement confirms the sentence.

    A claim was stated before the measurement, by the paper or by this project. Its `holds` is True
    or False. A finding is a measurement that nobody predicted. Its `holds` is None.
    """

    name: str  # unique within a summary
    claim: str  # a sentence
    measured: Any  # the number that the sentence is about, or a list of numbers
    interval: Any  # 95 % interval [low, high]; None if there is none, as for a largest value
    n: int  # number of independent units that the measurement uses
    unit: str  # the kind of unit that `n` counts: seeds, problems, learner steps
    holds: bool | None
    paper: str = ""  # the paper's own number or statement; empty if the paper makes none
    note: str = ""
    command: str = ""  # the command that repeats the measurement

    def record(self) -> dict[str, Any]:
        """Returns the claim as a dict, for summary.json."""
        return dataclasses.asdict(self)


def records(claims: list[Claim]) -> list[dict[str, Any]]:
    """Returns the claims as dicts, for the field KEY of summary.json.

    Raises:
      ValueError: two claims have the same name.
    """
    names = [claim.name for claim in claims]
    if len(set(names)) < len(names):
        raise ValueError(f"two claims have the same name; all names are {sorted(names)}")
    return [claim.record() for claim in claims]


def read(summary: dict[str, Any]) -> list[Claim]:
    """Returns the claims that the contents of a summary.json hold."""
    return [Claim(**fields) for fields in summary[KEY]]
