"""Says in which units a log counts: updates of a version and of a step, and the first step."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from staleness_grpo.errors import FlagError
from staleness_grpo.logs.files import Lines
from staleness_grpo.logs.formats import LAGS, Column, Format
from staleness_grpo.logs.order import Row

UNSET = "unset"  # the value of a flag that was not given, in messages


def require_whole(flag: str, value: int | None, least: int) -> None:
    """Raises FlagError unless a flag is unset, or a whole number that is not below `least`."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if value is not None and not (is_whole and value >= least):
        raise FlagError(flag, value, f"give a whole number >= {least}")


def updates(
    name: str,
    format_: Format,
    used: Mapping[str, Column],
    updates_per_version: int | None,
    updates_per_step: int,
) -> tuple[int, int]:
    """Returns the optimizer updates of a weight version, and those of a recorded step.

    Args:
      name: the name of the format.
      format_: the format.
      used: the signals that the log has.
      updates_per_version: as the user gave it.
      updates_per_step: as the user gave it.

    Raises:
      FlagError: a number is needed, has no meaning here, or does not fit the other.
    """
    if format_.one_update and updates_per_step != 1:
        hint = f"a step of --format={name} is one optimizer update: leave the flag out"
        raise FlagError("updates_per_step", updates_per_step, hint)
    if updates_per_version is not None and not any(c.in_versions for c in format_.signals.values()):
        hint = f"lags of --format={name} count optimizer updates: leave the flag out"
        raise FlagError("updates_per_version", updates_per_version, hint)
    lags = [signal for signal in LAGS if signal in used]
    in_versions = [signal for signal in lags if used[signal].in_versions]
    counts_versions = format_.steps_are_versions and updates_per_version is not None
    if not in_versions and not counts_versions:
        # The lags of later updates of a step would be larger. Only a table can have them so.
        if lags and name != "csv" and updates_per_step != 1:
            hint = f"lags of --format={name} are those of one update for each step: leave it out"
            raise FlagError("updates_per_step", updates_per_step, hint)
        return 1, updates_per_step
    if updates_per_version is None:
        hint = f"{in_versions[0]} counts weight versions: give the optimizer updates from one"
        hint += " version to the next, 1 if every update is published"
        raise FlagError("updates_per_version", UNSET, hint)
    if format_.steps_are_versions:
        if updates_per_step not in (1, updates_per_version):
            hint = f"a step publishes a version: give --updates_per_step={updates_per_version}"
            raise FlagError("updates_per_step", updates_per_step, hint)
        return updates_per_version, updates_per_version
    if updates_per_version % updates_per_step:
        hint = f"a version is published after whole steps: give a multiple of {updates_per_step}"
        raise FlagError("updates_per_version", updates_per_version, f"{hint} (updates_per_step)")
    return updates_per_version, updates_per_step


def first_step(
    log: Lines, format_: Format, rows: Sequence[Row], after: Collection[str], given: int | None
) -> int:
    """Returns the number of the run's first step.

    Args:
      log: the log, whose notes get a sentence where the number is taken from its beginning.
      format_: the format.
      rows: all rows.
      after: the columns that are measured after the updates of a step. A row with only these may
        be numbered by the step before the first.
      given: as the user gave it.

    Raises:
      FlagError: the number is not known, or a row comes before it.
    """
    least = min(row.step + (row.values.keys() <= set(after)) for row in rows)
    first = given if given is not None else format_.first_step
    if first is None:
        if least > 1:
            hint = f"the log begins with step {least}: give 0 or 1, the number of the run's first"
            raise FlagError("first_step", UNSET, f"{hint} step")
        log.notes.append(f"Steps count from {least}, because the log begins with it.")
        return least
    if least < first:
        hint = f"step {least} comes before the first step, {first}: give the run's first step"
        raise FlagError("first_step", UNSET if given is None else given, hint)
    return first
