"""Checks what a person asks, and of which runs the answer is made.

`experiments/configs/advise.py` has the fields.
"""

import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.common.workdir import SUMMARY
from staleness_grpo.errors import FieldError, did_you_mean, require, require_local
from staleness_grpo.logs import FORMATS

# What a question learns from: field of `config.advise` -> flag of the command.
SOURCES = {"runs": "run", "logs": "log", "probe": "probe"}
# Fields that only logs make use of, with the values that leave them out.
OF_LOGS = dict(
    format=None, updates_per_version=None, updates_per_step=1, first_step=None, columns=()
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
        every = f"give the format of the logs: {', '.join(FORMATS)}"
        hint = did_you_mean(str(question.format), FORMATS, every)
        check(question.format in FORMATS, "format", hint)
        for path in question.logs:
            there = pathlib.Path(path).is_file()
            require(there, "advise.logs", "there is no such file: give the file of a trainer", path)
    else:
        for name, unused in OF_LOGS.items():
            check(question[name] == unused, name, "only --log makes use of it: leave it out")
    for pair in question.columns:
        hint = "give pairs of our name and the log's, as in reward=my/reward"
        require(pair.count("=") == 1, "advise.columns", hint, pair)
    names = [pair.split("=")[0] for pair in question.columns]
    twice = [
        pair for pair, name in zip(question.columns, names, strict=True) if names.count(name) > 1
    ]
    require(not twice, "advise.columns", "give each of our names once", ",".join(twice))
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
    hint = "a probe sees a collapse by its evaluations: give a number >= 1"
    require(config.eval_every >= 1, "eval_every", hint, config.eval_every)
    hint = f"give a multiple of eval_every={config.eval_every}"
    divides = question.probe_steps >= 1 and question.probe_steps % config.eval_every == 0
    require(divides, "advise.probe_steps", hint, question.probe_steps)
    require(
        question.probe_span >= 2, "advise.probe_span", "give a number >= 2", question.probe_span
    )
    if config.lag.schedule != "constant":
        hint = "a probe sets constant lags: leave it out"
        raise FieldError("lag.schedule", hint, config.lag.schedule)
