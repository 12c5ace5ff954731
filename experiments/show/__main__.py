"""Shows a run in the terminal: what it is, its state, curves of its metrics, its newest samples.

    python -m experiments.show WORKDIR [--follow]

It reads the folder of any command and writes nothing, so it may look at a run that goes on. With
--follow the view is drawn anew every second until the run ends.
"""

import pathlib
import sys
import time

from rich.console import Console, RenderableType
from rich.live import Live

from experiments.common.reading import (
    Parser,
    Workdir,
    exits_in_one_line,
    is_locked,
    read_workdir,
)
from experiments.show.records import ENDED, Tail, state
from experiments.show.view import other_view, training_view

SECONDS = 1.0  # between two looks at a run


class Looker:
    """Looks at a workdir again and again."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self._metrics = Tail(workdir.folder / "metrics.jsonl")
        self._samples = Tail(workdir.folder / "samples.jsonl")
        self._was_running = False
        self.ended = False  # whether the run will write nothing more

    def look(self, width: int) -> RenderableType:
        """Returns the view of the folder as it is now."""
        records = self._metrics.read()
        now = state(self._workdir, records)
        # A run on another machine cannot be seen to run. One that was seen and is gone has stopped.
        self.ended = now in ENDED or (self._was_running and now != "running")
        self._was_running = now == "running"
        if self._workdir.is_training:
            return training_view(self._workdir, now, records, self._samples.read(), width)
        return other_view(self._workdir, now)


def main(arguments: list[str]) -> None:
    """Shows a workdir once, or until its run ends."""
    parser = Parser("experiments.show WORKDIR [--follow]", __doc__ or "")
    parser.add_argument("workdir", metavar="WORKDIR", help="the folder of a command's results")
    parser.add_argument("--follow", action="store_true", help="draw anew until the run ends")
    options = parser.parse_args(arguments)
    with exits_in_one_line():
        folder = pathlib.Path(options.workdir)
        while options.follow and is_locked(folder) and not (folder / "config.json").exists():
            time.sleep(SECONDS)  # a run that loads its policy, or is in its warm start
        looker, console = Looker(read_workdir(options.workdir)), Console()
        if not options.follow:
            console.print(looker.look(console.width))
            return
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(looker.look(console.width), refresh=True)
                if looker.ended:
                    break
                time.sleep(SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
