"""Provides the kinds of claims that the bias experiment makes, and their intervals.

A claim was fixed before the measurement, because theory predicts it, and holds or does not. A
finding is a measurement that nobody predicted; its `holds` is None. Intervals are 95 % bootstrap
intervals over problems. A number that is a largest value or a range has none.
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
    """Makes intervals over problems; each call goes on in one stream of random numbers."""

    rng: np.random.Generator
    num_resamples: int

    def interval(self, values: np.ndarray, statistic: Callable = np.mean) -> tuple[float, float]:
        """Returns the 95 % interval of a statistic of one value [n] for each problem."""
        return value_interval(values, self.rng, self.num_resamples, statistic)

    def median_finding(self, name: str, sentence: str, values: np.ndarray, note: str = "") -> Claim:
        """Returns the finding that the median over problems is what it is."""
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
    """Returns the claim that a quantity is 0 in every problem, whose measurement is the largest."""
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
