"""Defines and checks what a person asks, and of which runs the answer is made."""

import math
import pathlib
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.common.workdir import SUMMARY
from staleness_grpo.errors import FieldError, require, require_local
from staleness_grpo.logs import FORMATS
from staleness_grpo.scaling.probe import NUM_STEPS

# Flags of the command -> fields of `config.advise`.
FLAGS = {
    "run": "runs",
    "log": "logs",
    "format": "format",
    "probe": "probe",
    "horizon": "horizon",
    "max_lags": "max_lags",
    "max_lag": "max_lag",
    "learning_rate": "learning_rate",
    "b1": "b1",
    "updates_per_version": "updates_per_version",
    "updates_per_step": "updates_per_step",
    "first_step": "first_step",
    "columns": "columns",
}
# Fields that only logs make use of, with the values that leave them out.
OF_LOGS = dict(
    format=None, updates_per_version=None, updates_per_step=1, first_step=None, columns=()
)


def add_question(config: ConfigDict) -> None:
    """Adds the section `advise`, with its default values, to the config of a training."""
    with config.unlocked():
        config.advise = ConfigDict(
            dict(
                runs=(),  # finished workdirs of experiments.train or experiments.sweep
                logs=(),  # files that a trainer wrote
                format=config_dict.placeholder(str),  # of the logs, a name from docs/logs.md
                # Optimizer updates between two weight versions, for logs that count versions.
                updates_per_version=config_dict.placeholder(int),
                updates_per_step=1,  # optimizer updates of a recorded step
                first_step=config_dict.placeholder(int),  # number of the log's first step
                columns=(),  # for csv, pairs NAME=COLUMN of our names and the log's
                probe=False,  # make short runs of the config's training
                # The largest learning rate of the probe is so many times the smallest. The middle
                # one is optimizer.learning_rate.
                probe_span=64.0,
                probe_steps=NUM_STEPS,  # learner steps of each run of the probe
                horizon=600,  # T, the learner steps of the training that is planned
                max_lags=(1, 2, 4, 8, 16, 32, 64),  # the values of S that are asked about
                # S and eta of the run that is asked about. Logs without a lag or a learning rate
                # take these.
                max_lag=config_dict.placeholder(int),
                learning_rate=config_dict.placeholder(float),
                b1=config_dict.placeholder(float),  # momentum of the logged optimizer; unset: 0.9
            )
        )


def validate(config: ConfigDict) -> None:
    """Raises FieldError for the first field of `advise` whose value cannot be used."""
    question = config.advise

    def check(condition: Any, name: str, hint: str) -> None:
        require(bool(condition), f"advise.{name}", hint, question[name])

    asked = [bool(question.runs), bool(question.logs), question.probe]
    hint = "give workdirs with --run, files with --log, or --probe"
    check(any(asked), "runs", f"there is nothing to learn from: {hint}")
    check(sum(asked) == 1, "probe", "give only one of --run, --log and --probe")
    check(question.horizon >= 1, "horizon", "give a number of learner steps")
    check(len(question.max_lags) > 0, "max_lags", "give at least one lag")
    check(all(lag >= 0 for lag in question.max_lags), "max_lags", "give numbers >= 0")
    check(question.max_lag is None or question.max_lag >= 0, "max_lag", "give a number >= 0")
    rate = question.learning_rate
    is_rate = rate is None or (math.isfinite(rate) and rate > 0)
    check(is_rate, "learning_rate", "give a positive number")
    check(question.b1 is None or 0 <= question.b1 < 1, "b1", "give a number in [0, 1)")
    if question.logs:
        names = ", ".join(FORMATS)
        check(question.format in FORMATS, "format", f"give the format of the logs: {names}")
        for path in question.logs:
            there = pathlib.Path(path).is_file()
            require(there, "advise.logs", "there is no such file: give the file of a trainer", path)
    else:
        for name, unused in OF_LOGS.items():
            check(question[name] == unused, name, "only --log makes use of it: leave it out")
    for pair in question.columns:
        hint = "give pairs of our name and the log's, as in reward=my/reward"
        require(pair.count("=") == 1, "advise.columns", hint, pair)
    for path in question.runs:
        require_local(path, "advise.runs")
        folder = pathlib.Path(path)
        there = (folder / SUMMARY).is_file() and (folder / "config.json").is_file()
        hint = "give a finished workdir of experiments.train or experiments.sweep"
        require(there, "advise.runs", hint, path)
    if question.probe:
        _check_probe(config)


def _check_probe(config: ConfigDict) -> None:
    question = config.advise
    hint = f"give a multiple of eval_every={config.eval_every}"
    divides = config.eval_every >= 1 and question.probe_steps % config.eval_every == 0
    require(divides, "advise.probe_steps", hint, question.probe_steps)
    require(
        question.probe_span >= 2, "advise.probe_span", "give a number >= 2", question.probe_span
    )
    if config.lag.schedule != "constant":
        hint = "a probe sets constant lags: leave it out"
        raise FieldError("lag.schedule", hint, config.lag.schedule)
