"""Reads the log of a trainer as the history of one run, in our signals and units."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from staleness_grpo.logs import units
from staleness_grpo.logs.columns import columns_of_signals, rows_of, with_columns
from staleness_grpo.logs.files import Lines, read_lines
from staleness_grpo.logs.formats import ROUNDED, SIGNALS, Column
from staleness_grpo.logs.order import OrderError, Row, ordered

TOLERANCE = 1e-4  # how far float32 and printed digits take a value beyond its bound


@dataclasses.dataclass(frozen=True)
class History:
    """Holds what a trainer logged about one run. docs/metrics.md defines the signals."""

    step: np.ndarray  # [n] int64, optimizer updates done before each record; ascending, distinct
    signals: dict[str, np.ndarray]  # by SIGNALS: [n] float64, NaN where a record lacks the signal
    format: str
    notes: tuple[str, ...]  # sentences: what was converted, left out, merged; restarts


def read(
    path: pathlib.Path | str,
    format: str,
    updates_per_version: int | None = None,
    updates_per_step: int = 1,
    first_step: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> History:
    """Returns the history that a log tells.

    Steps become optimizer updates: m (n - first) are done before step n. So do lags. With U updates
    for a weight version, a lag of v versions is v U updates at the first of a step's m updates. At
    the last one it is larger by m - 1. So lag_mean is v U + (m - 1) / 2 if the updates have equally
    many groups, and lag_max is at most v U + m - 1, which is returned. If a version lasts several
    steps, v is a fraction, as verl logs it. A whole v would leave out the steps since the newest
    version.

    A signal that no record has is absent. `logs.order` says how restarts are told from rows out of
    order.

    Args:
      path: a file, as FORMATS describes.
      format: a key of FORMATS.
      updates_per_version: U, optimizer updates from one weight version to the next. It is needed
        if the log has lags in weight versions, and refused where lags are in updates.
      updates_per_step: m, optimizer updates that a recorded step makes. In the format `tinker`
        each step makes a version, so that U counts.
      first_step: number of the run's first step. It is needed where a format counts from 0 or 1,
        and the log begins later.
      columns: for the format `csv`, the log's names by our names, `step` among them. A lag that is
        named here counts weight versions. With U = 1 they are updates.

    Raises:
      FlagError: the log cannot be read without doubt. The message names the flag, its value and
        the fix.
    """
    chosen = with_columns(format, columns)
    units.require_whole("updates_per_version", updates_per_version, 1)
    units.require_whole("updates_per_step", updates_per_step, 1)
    units.require_whole("first_step", first_step, 0)
    log = read_lines(pathlib.Path(path), chosen.about, chosen.is_document)
    names = columns_of_signals(log, format, chosen, columns)
    rows = rows_of(log, chosen, {name for found in names.values() for name in found})
    try:
        rows = ordered(rows, log.notes)
    except OrderError as error:
        raise log.refuse(str(error)) from error
    used = {signal: chosen.signals[signal] for signal in names}
    counts = units.updates(format, chosen, used, updates_per_version, updates_per_step)
    after = {name for signal in names if used[signal].after for name in names[signal]}
    first = units.first_step(log, chosen, rows, after, first_step)
    table = _converted(log, used, names, rows, first, counts)
    steps = sorted(table)
    if steps[-1] > np.iinfo(np.int64).max:
        reason = f"step {rows[-1].step} would come after 2^63 optimizer updates or more"
        raise log.refuse(f"{reason}: give the log's own steps, and the updates of each")
    signals = {
        signal: np.array([table[step].get(signal, math.nan) for step in steps])
        for signal in used
        if any(signal in record for record in table.values())
    }
    log.notes.extend(_sentences(used, names, counts, chosen.one_update, steps))
    return History(np.array(steps, np.int64), signals, format, tuple(log.notes))


def _converted(
    log: Lines,
    used: Mapping[str, Column],
    names: Mapping[str, tuple[str, ...]],
    rows: Sequence[Row],
    first: int,
    counts: tuple[int, int],
) -> dict[int, dict[str, float]]:
    """Returns the signals by the optimizer updates done before. Checks the bounds of all values."""
    per_version, per_step = counts
    table: dict[int, dict[str, float]] = {}
    for row in rows:
        here: dict[str, float] = {}
        for signal, column in used.items():
            if any(name not in row.values for name in names[signal]):
                continue  # without the column that is added, the sum is not known
            value = sum(row.values[name] for name in names[signal])
            value = column.factor * (row.step - value if column.behind else value)
            if column.in_versions:
                later = per_step - 1
                value = value * per_version + (later if signal == "lag_max" else later / 2)
            here[signal] = value
            _refuse_out_of_bounds(log, row.step, signal, value)
            before = (row.step - first + column.after) * per_step
            table.setdefault(before, {})[signal] = value
        if here.get("lag_mean", 0.0) > here.get("lag_max", math.inf) + TOLERANCE:
            reason = f"step {row.step}: lag_mean is {here['lag_mean']:g}, above lag_max,"
            reason += f" {here['lag_max']:g}: give columns of one run in one unit"
            raise log.refuse(reason)
    if not table:
        raise log.refuse("no step has all columns of a signal: log them together")
    return table


def _refuse_out_of_bounds(log: Lines, step: int, signal: str, value: float) -> None:
    """Raises FlagError if the value cannot be one of the signal."""
    low, high = SIGNALS[signal]
    slack = TOLERANCE if signal in ROUNDED else 0.0
    if value < low - slack or value > high + slack:
        bounds = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} or more"
        reason = f"step {step}: {signal} is {value:g}, and must be {bounds}"
        raise log.refuse(f"{reason}: check the format, the first step and the column's unit")


def _sentences(
    used: Mapping[str, Column],
    names: Mapping[str, tuple[str, ...]],
    counts: tuple[int, int],
    one_update: bool,
    steps: Sequence[int],
) -> list[str]:
    """Returns notes about the conversion."""
    per_version, per_step = counts
    notes = [] if one_update else [f"Each recorded step counts as {per_step} optimizer updates."]
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    if gaps and min(gaps) > per_step:
        reach = f"Records lie {min(gaps)} or more updates apart"
        notes.append(f"{reach}: their values may be means over these.")
    if any(column.in_versions for column in used.values()):
        notes.append(f"Lags were converted: a weight version is {per_version} optimizer updates.")
        if "lag_max" in used and per_step > 1:
            notes.append("lag_max is an upper bound: the step's last update has the largest lags.")
    for signal, column in used.items():
        name = names[signal][0].rpartition(" - ")[2]
        if name != column.names[0]:
            notes.append(f"{signal} was read from {name}. {column.otherwise}".strip())
        if column.remark:
            notes.append(column.remark)
    return notes
