"""Shows a progress bar if the standard error output is a terminal."""

import sys

import rich.console
import rich.progress


class Progress:
    """A context manager that shows a progress bar if the standard error output is a terminal.

    Args:
      description: the text before the bar.
      total: the number of units of work, including the `done` units.
      done: the number of units that are already done at the start, for example in a resumed run.
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
        """Counts one more unit as done, and shows the text `note` after the bar."""
        self._bar.update(self._task, advance=1, note=note)
