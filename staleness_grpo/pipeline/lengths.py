"""Draws the lengths of responses, from a distribution or from recorded lengths.

Every length is a quantile of its distribution. The quantile's level comes from a normal number with
a part that the group shares, so lengths within a group can be correlated for any distribution.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from staleness_grpo.errors import FieldError, require, require_at_least, require_choice

DISTRIBUTIONS = LOGNORMAL, CONSTANT, GEOMETRIC, FILE = "lognormal", "constant", "geometric", "file"
BLOCK = 256  # groups whose random numbers are drawn at once
LONGEST = 2**53  # the largest length that a file may have; floats are exact up to it
PURPOSE = 0x1E46  # tells these random numbers from those of other parts with the same seed


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Describes the distribution of response lengths in tokens.

    A drawn length above `limit` becomes `limit`, as when an engine cuts a response off.

    Raises:
      FieldError: the distribution is unknown, a number is outside its range, or the file cannot be
        used or has a length above the limit.
    """

    distribution: str  # one of DISTRIBUTIONS
    mean: float  # mean before the limit; the distribution "file" does not read it
    sigma: float  # standard deviation of the logarithm; read by "lognormal" alone
    correlation: float  # share of a length's normal number that its group has in common, 0 to 1
    limit: int  # largest number of tokens of a response
    path: str | None = None  # file of recorded lengths, for "file"; see `read_lengths`

    def __post_init__(self):
        fields = dataclasses.asdict(self)
        require_choice(fields, "distribution", DISTRIBUTIONS)
        require_at_least(fields, {"limit": 1, "sigma": 0, "correlation": 0})
        require(self.correlation <= 1, "correlation", "give a number <= 1", self.correlation)
        require(math.isfinite(self.sigma), "sigma", "give a finite number", self.sigma)
        if self.distribution == FILE:
            require(self.path is not None, "path", "the lengths come from a file: give its path")
            longest = self._recorded[-1]
            hint = f"the longest response has {longest} tokens, above limit={self.limit}"
            require(longest <= self.limit, "path", f"{hint}: raise the limit", self.path)
            return
        hint = "only the distribution file reads a file: leave this field unset"
        require(self.path is None, "path", hint, self.path)
        hint = f"give a number from 1 to limit={self.limit}"
        require(1 <= self.mean <= self.limit, "mean", hint, self.mean)

    @functools.cached_property
    def _recorded(self) -> np.ndarray:
        """Returns the recorded lengths in increasing order."""
        assert self.path is not None
        return np.sort(read_lengths(self.path))

    def sampler(self, group_size: int, seed: int) -> Callable[[int], list[int]]:
        """Returns a function that gives the G lengths of a group by the group's number.

        The lengths depend on the seed and on the group's number alone. So pipelines that begin
        their groups at other times answer with the same lengths.
        """

        @functools.lru_cache(maxsize=4)
        def block(number: int) -> list[list[int]]:
            rng = np.random.default_rng((PURPOSE, seed, number))
            shared_Ox1 = rng.standard_normal((BLOCK, 1))  # O is the groups of the block
            own_OxG = rng.standard_normal((BLOCK, group_size))
            weight = self.correlation
            normal_OxG = math.sqrt(weight) * shared_Ox1 + math.sqrt(1 - weight) * own_OxG
            lengths_OxG = np.clip(np.rint(self._quantiles(normal_OxG)), 1, self.limit)
            return lengths_OxG.astype(int).tolist()

        return lambda group: block(group // BLOCK)[group % BLOCK]

    def _quantiles(self, normal: np.ndarray) -> np.ndarray:
        """Returns the length whose quantile level is that of each standard normal number."""
        if self.distribution == LOGNORMAL:
            return np.exp(math.log(self.mean) - self.sigma**2 / 2 + self.sigma * normal)
        if self.distribution == GEOMETRIC:
            if self.mean == 1:
                return np.ones_like(normal)
            # log(1 - level), without the rounding error of levels near 1
            return np.ceil(special.log_ndtr(-normal) / math.log1p(-1 / self.mean))
        if self.distribution == CONSTANT:
            return np.full_like(normal, self.mean)
        place = np.floor(special.ndtr(normal) * len(self._recorded)).astype(int)
        return self._recorded[np.minimum(place, len(self._recorded) - 1)].astype(float)


def read_lengths(path: str | pathlib.Path) -> np.ndarray:
    """Reads recorded lengths [O], int64, in the order of the file; O is their number.

    A line is a whole number, or a JSON object with a number `length` or a list `lengths`. The file
    samples.jsonl of `experiments.train` has such lists.

    Raises:
      FieldError: the file cannot be read, is empty, or has a line of another form. The error names
        the field `path` and the line.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise FieldError(
            "path", f"the file cannot be read ({reason}): give another", path
        ) from error
    found: list[int] = []
    # Not `splitlines`: a text in JSON may hold other line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found += _lengths_of(line, number, path)
    require(len(found) > 0, "path", "the file has no lengths: give one with a length a line", path)
    return np.array(found, np.int64)


def _lengths_of(line: str, number: int, path: Any) -> list[int]:
    """Returns the lengths of one line. Raises FieldError if the line has another form."""
    hint = f"line {number} is no length: give a whole number >= 1, or JSON with length or lengths"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FieldError("path", hint, path) from error
    if isinstance(value, dict):
        value = value.get("lengths", value.get("length"))
    values = value if isinstance(value, list) else [value]
    require(all(map(_is_length, values)), "path", hint, path)
    return [int(value) for value in values]


def _is_length(value: Any) -> bool:
    """Returns whether a value of JSON is a whole number >= 1; some tools write 3.0 for 3."""
    is_whole = type(value) is int or (type(value) is float and value.is_integer())
    return is_whole and 1 <= value <= LONGEST
