"""Reads the records of a run again and again while it writes them, and says what state it is in."""

import contextlib
import json
import pathlib
import time
from typing import Any

from experiments.common.reading import Workdir, is_locked

ENDED = ("finished", "collapsed")


class Tail:
    """Reads the records that a JSON-lines file has, and later only those that it got since then."""

    def __init__(self, path: pathlib.Path):
        self._path, self._place = path, 0
        self.records: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Returns all records so far, without an incomplete last line.

        A resumed run cuts its file back. The file is then read from its start.
        """
        if not self._path.exists():
            self._place, self.records = 0, []
            return self.records
        if not self._continues():
            self._place, self.records = 0, []
        with self._path.open("rb") as file:
            file.seek(self._place)
            content = file.read()
        end = content.rfind(b"\n") + 1
        for line in content[:end].splitlines():
            with contextlib.suppress(ValueError):  # a line of a damaged file
                record = json.loads(line)
                if isinstance(record, dict):
                    self.records.append(record)
        self._place += end
        return self.records

    def _continues(self) -> bool:
        """Returns whether the file still has the last record where it was read."""
        if not self.records:
            return self._path.stat().st_size >= self._place
        with self._path.open("rb") as file:
            file.seek(max(0, self._place - 1_000_000))
            last_lines = file.read(min(self._place, 1_000_000)).splitlines()
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(last_lines[-1]) == self.records[-1]
        return False


def state(workdir: Workdir, records: list[dict[str, Any]]) -> str:
    """Returns finished, collapsed, running, or what else is known about the run."""
    summary = workdir.summary()
    if records and records[-1].get("collapsed") or (summary or {}).get("collapsed"):
        return "collapsed"
    if summary is not None:
        return "finished"
    return "running" if is_locked(workdir.folder) else "not finished, not running on this machine"


def seconds_since_last_record(workdir: Workdir) -> float | None:
    """Returns the age of metrics.jsonl; None without the file."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - (workdir.folder / "metrics.jsonl").stat().st_mtime
    return None
