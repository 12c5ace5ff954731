"""Finds the columns of a log that have our signals, and reads their rows."""

import dataclasses
import math
from collections.abc import Mapping

from staleness_grpo.errors import FlagError
from staleness_grpo.logs.files import Lines
from staleness_grpo.logs.formats import FORMATS, LAGS, SIGNALS, Column, Format
from staleness_grpo.logs.order import Row

SHOWN = 6  # names that a message lists


def with_columns(name: str, columns: Mapping[str, str] | None) -> Format:
    """Returns the format of a name, with the columns that are mapped.

    Raises:
      FlagError: there is no such format or signal, or the format has names of its own.
    """
    if name not in FORMATS:
        raise FlagError("format", name, f"choose one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if not columns:
        return chosen
    if name != "csv":
        hint = f"format={name} has its own names: leave the flag out, or give --format=csv"
        raise FlagError("columns", dict(columns), hint)
    unknown = [signal for signal in columns if signal != "step" and signal not in SIGNALS]
    if unknown:
        hint = f"there is no signal {unknown[0]}: choose from step, {', '.join(SIGNALS)}"
        raise FlagError("columns", dict(columns), hint)
    mapped = {
        signal: Column((column,), in_versions=signal in LAGS)
        for signal, column in columns.items()
        if signal != "step"
    }
    steps = (columns["step"],) if "step" in columns else chosen.steps
    return dataclasses.replace(chosen, signals={**chosen.signals, **mapped}, steps=steps)


def columns_of_signals(
    log: Lines, name: str, format_: Format, mapped: Mapping[str, str] | None
) -> dict[str, tuple[str, ...]]:
    """Returns, for each signal that the log has, its column, and the one to add if there is any.

    Columns without any value are left out, and noted.

    Raises:
      FlagError: no signal is in the log, two columns have one name, a mapped column is absent, or
        the log has more names of another format.
    """
    filled = log.filled
    found: dict[str, tuple[str, ...]] = {}
    for signal, column in format_.signals.items():
        here = [column for column in (_column(log, name) for name in column.names) if column]
        with_values = [column for column in here if filled[column]]
        if with_values:
            plus = _column(log, column.plus) if column.plus else None
            found[signal] = (with_values[0], plus) if plus and filled[plus] else (with_values[0],)
        elif here:
            log.notes.append(f"{signal} is absent: the column {here[0]} holds no value.")
        elif mapped and signal in mapped:
            raise FlagError("columns", dict(mapped), f"the log has no column {mapped[signal]}")
    _refuse_another_format(log, name, format_)
    if not found:
        wanted = [column.names[0] for column in format_.signals.values()]
        hint = f"no record has a value of {', '.join(wanted[:SHOWN])} or another signal: log them"
        raise log.refuse(hint)
    return found


def _refuse_another_format(log: Lines, name: str, format_: Format) -> None:
    """Raises FlagError if the log has more signals by the names of another format."""
    own = _count(log, format_)
    others = {other: _count(log, FORMATS[other]) for other in FORMATS if other != name}
    most = max(others.values())
    # A table with the names of a trainer may be read by some of our names on purpose.
    if most > own and (own == 0 or name != "csv"):
        like = " or ".join(other for other, count in others.items() if count == most)
        looked_for = ", ".join(column.names[0] for column in format_.signals.values())
        hint = f"the log has {own} of its signals ({looked_for}) and looks like --format={like}"
        raise FlagError("format", name, hint)


def _column(log: Lines, name: str) -> str | None:
    """Returns the log's column of a name. W&B puts the name of the run in front: 'run - name'."""
    here = [column for column in log.filled if column == name or column.endswith(f" - {name}")]
    if len(here) > 1:
        raise log.refuse(f"{here[0]} and {here[1]} are both {name}: export one run alone")
    return here[0] if here else None


def _count(log: Lines, format_: Format) -> int:
    """Returns how many signals of a format are among the columns that have values."""
    names = {column.rpartition(" - ")[2] for column, is_filled in log.filled.items() if is_filled}
    return sum(not names.isdisjoint(column.names) for column in format_.signals.values())


def rows_of(log: Lines, format_: Format, wanted: set[str]) -> list[Row]:
    """Returns the rows that have a step and a value of a wanted column, in the log's own units.

    Rows without a step are left out, and infinite values count as missing. Both are noted.

    Raises:
      FlagError: no column has steps, or a step or a value cannot be used.
    """
    steps = [column for column in (_column(log, name) for name in format_.steps) if column]
    steps = [column for column in steps if log.filled[column]]
    if not steps:
        hint = f"no column has steps, such as {', '.join(format_.steps[:SHOWN])}: log one of them"
        raise log.refuse(hint)
    if steps[0].rpartition(" - ")[2] == "_step":
        log.notes.append("Steps are those of _step, which W&B counts by calls if it is told none.")
    rows: list[Row] = []
    without_step, infinite = 0, dict.fromkeys(sorted(wanted), 0)
    for line in log.lines:
        values = {}
        for name in infinite:
            value = log.number(line, name)
            if value is not None and math.isinf(value):
                infinite[name] += 1
            elif value is not None:
                values[name] = value
        step = log.number(line, steps[0])
        if not values:
            continue
        if step is None:
            without_step += 1
        elif not step.is_integer() or step < 0:
            reason = f"{line.where}: {steps[0]} is {step:g}: give whole numbers >= 0"
            raise log.refuse(reason)
        else:
            rows.append(Row(int(step), values, line.where))
    if without_step:
        log.notes.append(f"{without_step} rows have values and no step, and were left out.")
    for name, count in infinite.items():
        if count:
            log.notes.append(f"{count} values of {name} are infinite, and count as missing.")
    if not rows:
        raise log.refuse("no row has a step and a finite value of a signal: log both together")
    return rows
