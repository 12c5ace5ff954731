"""Answers which learning rate is safe at which lag, with intervals, and for how risky a run is.

    python -m experiments.advise --workdir=DIR --probe --horizon=T [--config=FILE.py ...]
    python -m experiments.advise --workdir=DIR --run=WORKDIR [--run=WORKDIR ...] --horizon=T
    python -m experiments.advise --workdir=DIR --log=FILE --format=NAME --horizon=T

What it learns from: short runs that it makes itself, finished workdirs of `experiments.train` or
`experiments.sweep`, or what another trainer logged. With --max_lag and --learning_rate it also says
how likely a run with these collapses. Writes advice.md, summary.json and a figure. It refuses, in
one line, where the runs cannot carry an answer.
"""

import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.advise.question import SOURCES
from experiments.common import cli
from experiments.configs.advise import section
from staleness_grpo.errors import FieldError, FlagError


def validate(config: ConfigDict) -> None:
    """Refuses a question that cannot be answered, or a probe that cannot run."""
    from experiments.advise import question
    from experiments.advise.probing import training

    question.validate(config)
    if config.advise.probe:
        cli.validate_on_this_machine(training(config))


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Gathers the runs, and writes the answer.

    Raises:
      FlagError: the runs cannot carry an answer.
    """
    from experiments.advise import page, sources
    from experiments.advise.answer import answer
    from experiments.common.workdir import SUMMARY, write_run_files
    from staleness_grpo.runtime.records import write_json

    known = sources.gather(config, workdir)
    advice = answer(config, known)
    write_run_files(workdir, config)
    text = page.text(advice, known)
    (workdir / page.NAME).write_text(text, encoding="utf-8")
    write_json(workdir / SUMMARY, page.record(advice, known))
    print(text)


def draw(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Draws eta_max by S; returns the path of the PNG."""
    from experiments.advise import figures

    return figures.draw(workdir)


def _whole_numbers(name: str, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the numbers that a flag has. Raises FlagError if one is no whole number."""
    try:
        return tuple(int(text) for text in texts)
    except ValueError as error:
        raise FlagError(name, ",".join(texts), "give whole numbers, as in 1,4,16") from error


if __name__ == "__main__":
    values: dict[str, Any] = {
        "run": flags.DEFINE_multi_string("run", None, "A finished workdir of ours."),
        "log": flags.DEFINE_multi_string("log", None, "A file that a trainer wrote."),
        "format": flags.DEFINE_string("format", None, "The trainer, a name from docs/logs.md."),
        "probe": flags.DEFINE_bool("probe", None, "Make short runs of the config's training."),
        "horizon": flags.DEFINE_integer("horizon", None, "T, learner steps that are planned."),
        "max_lags": flags.DEFINE_list("max_lags", None, "The lags S that are asked about."),
        "max_lag": flags.DEFINE_integer("max_lag", None, "S of the run that is asked about."),
        "learning_rate": flags.DEFINE_float("learning_rate", None, "Its learning rate."),
        "b1": flags.DEFINE_float("b1", None, "Momentum of the optimizer in the logs."),
        "updates_per_version": flags.DEFINE_integer(
            "updates_per_version", None, "Optimizer updates between two weight versions."
        ),
        "updates_per_step": flags.DEFINE_integer(
            "updates_per_step", None, "Optimizer updates of a recorded step."
        ),
        "first_step": flags.DEFINE_integer("first_step", None, "Number of the log's first step."),
        "columns": flags.DEFINE_list("columns", None, "For csv: NAME=COLUMN, ..."),
    }

    fields = {flag: field for field, flag in SOURCES.items()}

    def _validate(config: ConfigDict) -> None:
        """Calls `validate`, and names the flag in an error about a field that a flag has set."""
        flag_of = {f"advise.{fields.get(flag, flag)}": flag for flag in values}
        try:
            validate(config)
        except FieldError as error:
            flag = flag_of.get(error.field)
            if flag is None or values[flag].value is None:
                raise
            raise FlagError(flag, error.value, error.hint) from error

    def _fill_in(config: ConfigDict) -> None:
        """Copies the flags into the config, where a second call finds them again."""
        if "advise" not in config:  # the config of a training
            with config.unlocked():
                config.advise = section()
        for name, flag in values.items():
            if flag.value is None:
                continue
            value = tuple(flag.value) if isinstance(flag.value, list) else flag.value
            if name == "max_lags":
                value = _whole_numbers(name, value)
            config.advise[fields.get(name, name)] = value

    cli.run(
        main,
        draw,
        default_config="experiments/configs/advise.py",
        validate=_validate,
        prepare=_fill_in,
        optional=("advise",),
    )
