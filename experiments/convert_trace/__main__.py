"""Converts what a trainer recorded about staleness to a trace, which another run replays.

    python -m experiments.convert_trace --input=PATH --format=NAME --output=FILE [OPTIONS]

PATH is a file, or a folder of a trainer's files. The command prints a line for each kind of record
that was dropped, filled or replaced, with its number. The last line says whether the lags were
recorded or drawn. docs/traces.md describes the formats.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from experiments.common.reading import Parser, exits_in_one_line
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.staleness.converters.convert import Conversion, Options, convert
from staleness_grpo.staleness.converters.formats import FORMATS
from staleness_grpo.staleness.trace import TraceError

HELP: dict[str, str] = {
    "updates_per_version": "optimizer updates from one weight version to the next",
    "steps_per_version": "recorded steps from one weight version to the next (1)",
    "first_step": "number of the run's first step, where it is not the usual one",
    "first_version": "number of the version before it, where it is not the usual one",
    "num_groups": "groups of a learner step; needed where the records have none or vary",
    "span": "which version of a group counts: oldest (default) or newest",
    "restarts": "a run that goes back to an earlier step: refuse (default) or replace",
    "holes": "steps without a record: refuse (default), or previous to repeat the lags before",
    "early": "versions from before the first step: refuse (default), or clip to the first one",
    "seed": "seed of lags that are drawn (0)",
}


def main(arguments: list[str]) -> None:
    """Converts the records, writes the trace, and prints what was done to them."""
    form = "experiments.convert_trace --input=PATH --format=NAME --output=FILE [OPTIONS]"
    parser = Parser(form, __doc__ or "")
    parser.add_argument("--input", required=True, help="a file or folder of the trainer")
    names = "; ".join(f"{name}: {format_.about}" for name, format_ in FORMATS.items())
    parser.add_argument("--format", required=True, help=names)
    parser.add_argument("--output", required=True, help="the trace, a file of JSON lines")
    types = {field.name: field.default for field in dataclasses.fields(Options)}
    for name, text in HELP.items():
        kind = str if isinstance(types[name], str) else int
        parser.add_argument(f"--{name}", type=kind, default=types[name], help=text)
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    with exits_in_one_line():
        source, target = given.pop("input"), pathlib.Path(given.pop("output"))
        try:
            options = Options(**given)
            if target.exists() and target.samefile(source):
                raise FlagError("output", target, "this is the input: give another file")
            if pathlib.Path(source).resolve() in target.resolve().parents:
                raise FlagError("output", target, "it lies in the input: give another folder")
            if not target.parent.is_dir():
                raise FlagError("output", target, "its folder does not exist: make it first")
            conversion = convert(pathlib.Path(source), options)
        except FieldError as error:
            raise FlagError(error.field, error.value, error.hint) from error
        except FileNotFoundError as error:
            raise FlagError("input", source, "it does not exist: give a file or folder") from error
        except IsADirectoryError as error:
            hint = f"format={given['format']} reads no folders: give a file"
            raise FlagError("input", source, hint) from error
        except (TraceError, OSError) as error:
            raise FlagError("input", source, str(error)) from error
        try:
            conversion.write(target)
        except OSError as error:
            raise FlagError("output", target, f"the trace cannot be written: {error}") from error
        print("\n".join(report(conversion, target)))


def report(conversion: Conversion, target: pathlib.Path) -> list[str]:
    """Returns the lines about a conversion. The last one says whether lags were drawn."""
    header, lags = conversion.header, conversion.lags
    lines = [f"{number} {what}" for what, number in header["counts"].items()]
    lines.append(f"steps count from {header['first_step']}")
    num_groups = len(lags[0])
    flags = f"--config.steps={len(lags)} --config.num_prompts={num_groups} "
    flags += f"--config.lag.max_lag={max(map(max, lags))} --config.lag.schedule=trace"
    lines.append(f"replay it with {flags} --config.lag.trace={target}")
    what = f"{header['lags']}: the lags of {num_groups} groups in {len(lags)} learner steps"
    if header["lags"] == "drawn":
        what += f", drawn with seed {header['options']['seed']} from statistics of each step"
    lines.append(f"{what}, from {header['format']}, in {target}")
    return lines


if __name__ == "__main__":
    main(sys.argv[1:])
