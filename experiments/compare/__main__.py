"""Draws several trainings over each other.

    python -m experiments.compare WORKDIR... [--output=FILE.png]

Each WORKDIR is one of `experiments.train`; it may be unfinished. Trainings that differ in their
seed alone become one line: their mean, with a 95 % interval of Student's t over the seeds. The
labels are the fields in which the trainings differ.

The only file that it writes is the figure.
"""

import os
import pathlib
import sys

from experiments.common.reading import Parser, exits_in_one_line, read_workdir
from staleness_grpo.errors import FlagError

SUFFIXES = (".png", ".pdf")


def check_output(output: str) -> pathlib.Path:
    """Returns the path of the figure. Raises FlagError if it cannot be written."""
    path = pathlib.Path(output)
    if path.suffix not in SUFFIXES:
        raise FlagError("output", output, f"give a name that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise FlagError("output", output, "this is a folder: give the name of a file")
    if not path.absolute().parent.is_dir():
        raise FlagError("output", output, "its folder does not exist: make it, or give another")
    if not os.access(path.absolute().parent, os.W_OK):
        raise FlagError("output", output, "its folder is not writable: give another")
    return path


def main(arguments: list[str]) -> None:
    """Draws the trainings, and prints a line for each kind and the path of the figure."""
    parser = Parser("experiments.compare WORKDIR... [--output=FILE.png]", __doc__ or "")
    parser.add_argument("workdirs", metavar="WORKDIR", nargs="+", help="the folder of a training")
    parser.add_argument(
        "--output", default="comparison.png", metavar="FILE", help="the figure, .png or .pdf"
    )
    options = parser.parse_args(arguments)
    with exits_in_one_line():
        path = check_output(options.output)
        workdirs = [read_workdir(workdir) for workdir in options.workdirs]
        from experiments.compare import analysis, figures

        found = analysis.kinds(workdirs)
        if len(found) > figures.MAX_KINDS:
            hint = f"these are {len(found)} configs: give folders of at most {figures.MAX_KINDS}"
            raise FlagError.of_variable("WORKDIR", options.workdirs[-1], hint)
        for kind in found:
            print("; ".join([kind.label, *analysis.notes(kind)]))
        figures.draw(found, path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
