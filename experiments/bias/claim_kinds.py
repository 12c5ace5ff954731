"""Makes the claims and findings of the bias experiment and their bootstrap intervals.

A claim was stated before the measurement, because theory predicts it. Its `holds` is True or False.
A finding is a measurement that nobody predicted. Its `holds` is None.

Intervals are 95 % bootstrap intervals over problems. A largest value and a range have no interval.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from experiments.common.claims import Claim
from staleness_grpo.scaling.bootstrap import value_interval

bias_claim = functools.partial(Claim, command="python -m experiments.bias --workdir=DIR")


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Makes bootstrap intervals over problems. All calls draw from one random generator."""

    rng: np.random.Generator
    num_resamples: int

    def interval(self, values: np.ndarray, statistic: Callable = np.mean) -> tuple[float, float]:
        """Returns the 95 % interval of a statistic.

        Args:
          values: one value for each problem, [n].
          statistic: computes a number from the values of resampled problems.
        """
        return value_interval(values, self.rng, self.num_resamples, statistic)

    def median_finding(self, name: str, sentence: str, values: np.ndarray, note: str = "") -> Claim:
        """Returns a finding whose measurement is the median over problems.

        Args:
          name: the finding's name.
          sentence: states which quantity was measured.
          values: the quantity in each problem, [n].
          note: is added to the note about the range over problems.
        """
        return bias_claim(
            name=name,
            claim=sentence,
            measured=float(np.median(values)),
            interval=self.interval(values, np.median),
            n=len(values),
            unit="problems",
            holds=None,
            note=f"median over problems, which range from {values.min():.2g} to {values.max():.2g}"
            + (f"; {note}" if note else ""),
        )


def zero_claim(
    name: str, sentence: str, values: np.ndarray, tolerance: float, note: str = ""
) -> Claim:
    """Returns the claim that a quantity is 0 in every problem, up to rounding.

    The measurement is the largest value. The claim holds if this value is below the tolerance.

    Args:
      name: the claim's name.
      sentence: states that the quantity is 0.
      values: the quantity in each problem, [n].
      tolerance: the largest value that rounding explains.
      note: the claim's note.
    """
    return bias_claim(
        name=name,
        claim=sentence,
        measured=float(values.max()),
        interval=None,
        n=len(values),
        unit="problems",
        holds=bool(values.max() < tolerance),
        note=note,
    )
