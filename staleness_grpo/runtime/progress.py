"""Shows a progress bar to people at a terminal."""

import sys

import rich.console
import rich.progress


class Progress:
    """A context manager that shows a progress bar on a terminal, and nothing in a pipe.

    Args:
      description: stands before the bar.
      total: units of work in all.
      done: units that an earlier run has done.
    """

    def __init__(self, description: str, total: int, done: int = 0):
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[note]}"),
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def advance(self, note: str = "") -> None:
        """Counts one unit as done, and shows `note` beside the bar."""
        self._bar.update(self._task, advance=1, note=note)
