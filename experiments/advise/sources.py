"""Reads the runs of a question: from a probe, from workdirs of ours, or from logs."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.advise.probing import rates, run_probe
from staleness_grpo.errors import FlagError, counted
from staleness_grpo.logs import History, read
from staleness_grpo.runtime.records import read_json, read_jsonl
from staleness_grpo.scaling.collapse import detect_collapse
from staleness_grpo.scaling.collapse_law import Runs, runs
from staleness_grpo.scaling.early_sign import SIGN, SMALL_MODELS, early_mean
from staleness_grpo.scaling.outcomes import LEARNED, STALLED, outcomes
from staleness_grpo.scaling.prior import Sign
from staleness_grpo.training.learner import momentum_decay

DEFAULT_B1 = 0.9
KL = "approx_kl"
# A training's reward is a mean over so many responses or more; it only sets an interval.
NUM_SAMPLES = 256
STEADY = 0.9  # a learning rate that ends below this share of its peak was not constant
FEWEST_RUNS = 4  # of which is said whether they learned
FEWEST_RECORDS = 20  # rewards from which a collapse can be told from noise
MOST_PLACES = 100_000  # to which rewards are filled up; more would take minutes


@dataclasses.dataclass(frozen=True)
class Known:
    """Holds what is known of the setting that is asked about."""

    runs: Runs
    b1: float  # of the optimizer's momentum
    kind: str  # what was read, in words
    cost: int  # learner steps that were made for the question
    at: tuple[float, float] | None  # S and eta of the run that is asked about
    signs: tuple[Sign, ...]  # what the mean of (log ratio)^2 says of the runs
    notes: tuple[str, ...]


def gather(config: ConfigDict, workdir: pathlib.Path) -> Known:
    """Returns the runs of a question. A probe's runs are made first.

    Raises:
      FlagError: a workdir or a log cannot be used.
    """
    question = config.advise
    if question.probe:
        records = run_probe(config, workdir)
        kind = f"a probe of {len(records)} runs with rates from {rates(config)[0]:g}"
        cost = sum(record["steps_run"] for record in records)
        return _known(config, records, momentum_decay(config.optimizer), kind, cost)
    if question.logs:
        rows, notes = [], []
        for path in question.logs:
            history = read(
                path,
                question.format,
                question.updates_per_version,
                question.updates_per_step,
                question.first_step,
                dict(pair.split("=") for pair in question.columns) or None,
            )
            rows.append(_of_history(config, history, path))
            notes += [f"{path}: {note}" for note in history.notes]
        kind = f"{counted(len(rows), 'log')} of {question.format}"
        b1 = DEFAULT_B1 if question.b1 is None else question.b1
        if question.b1 is None:
            notes.append(f"The logs do not say b1 of the optimizer: {DEFAULT_B1:g} is assumed.")
        return _known(config, rows, b1, kind, 0, tuple(notes))
    rows, momenta = [], set()
    for folder in map(pathlib.Path, question.runs):
        saved = ConfigDict(read_json(folder / "config.json"))
        if "optimizer" not in saved:
            raise FlagError("run", folder, "it holds no trainings: give one of a map or a training")
        momenta.add(momentum_decay(saved.optimizer))
        is_map = (folder / "cells.jsonl").exists()
        rows += read_jsonl(folder / "cells.jsonl") if is_map else [_of_training(folder, saved)]
    if len(momenta) > 1:
        hint = f"their optimizers have b1 = {sorted(momenta)}: give runs of one setting"
        raise FlagError("run", ", ".join(question.runs), hint)
    kind = f"{counted(len(rows), 'run')} in {counted(len(question.runs), 'workdir')}"
    return _known(config, rows, momenta.pop(), kind, 0)


def _known(
    config: ConfigDict,
    records: list[dict],
    b1: float,
    kind: str,
    cost: int,
    notes: tuple[str, ...] = (),
) -> Known:
    question = config.advise
    lag, rate = question.max_lag, question.learning_rate
    if len(records) == 1:  # the only run is meant, where nothing else is said
        lag = records[0]["max_lag"] if lag is None else lag
        rate = records[0]["learning_rate"] if rate is None else rate
    at = None if lag is None or rate is None else (float(lag), float(rate))
    signs = tuple(sign for record in records if (sign := _sign(record)) is not None)
    notes += stall_notes(records)
    if any(record.get("is_slowed") for record in records):
        notes += (
            "The learning rate of a run fell, by a schedule or a guard: its peak counts here.",
        )
    return Known(runs(records), b1, kind, cost, at, signs, notes)


def stall_notes(records: list[dict]) -> tuple[str, ...]:
    """Returns a note if rates above those that learned survive and learn nothing.

    An answer is about collapse. Such a rate counts as safe in it.
    """
    known = [record for record in records if "eval_reward" in record.get("traces", {})]
    if len(known) < FEWEST_RUNS:
        return ()
    found = list(zip(known, outcomes(known), strict=True))
    learned = [record["learning_rate"] for record, outcome in found if outcome == LEARNED]
    stalled = [record["learning_rate"] for record, outcome in found if outcome == STALLED]
    beginning = "The answer is about collapse, not about learning:"
    if not learned:
        return (f"{beginning} none of these runs learned.",)
    if not stalled or max(stalled) <= max(learned):
        return ()
    above = f"{max(learned):.2g}, and {sum(rate > max(learned) for rate in stalled)} runs above it"
    return (
        f"{beginning} the largest rate that learned here is {above} survived without learning.",
    )


def _sign(record: dict) -> Sign | None:
    """Returns what the early mean of (log ratio)^2 says of a run; None if it is not known."""
    if not record["max_lag"] or SIGN not in record.get("traces", {}):
        return None
    mean = early_mean(record)
    if mean is None:
        return None
    law = SMALL_MODELS
    return Sign(record["max_lag"], record["learning_rate"], law.log_time(mean), law.sigma)


def _of_training(folder: pathlib.Path, config: ConfigDict) -> dict[str, Any]:
    """Returns the row of a workdir of `experiments.train`.

    Raises:
      FlagError: the folder has no records, or no evaluations, from which a collapse would be seen.
    """
    path = folder / "metrics.jsonl"
    records = read_jsonl(path) if path.exists() else []
    if not records:
        hint = (
            "it has neither cells.jsonl nor metrics.jsonl: give the folder of a map or a training"
        )
        raise FlagError("run", folder, hint)
    evaluated = [record for record in records if "eval_reward" in record]
    if len(evaluated) < 2:
        hint = "the training has no evaluations (eval_every), from which a collapse would be seen"
        raise FlagError("run", folder, hint)
    rewards = np.array([record["eval_reward"] for record in evaluated])
    every = evaluated[1]["step"] - evaluated[0]["step"]
    is_finite = not records[-1]["collapsed"]
    row = _row(
        float(np.mean([r["lag_mean"] for r in records[config.lag.max_lag :] or records])),
        config.optimizer.learning_rate,
        rewards[np.isfinite(rewards)],
        every,
        len(records),
        is_finite,
    )
    steps = np.array([record["step"] for record in records])
    squares = np.array([record[SIGN] for record in records], float)
    rates_I = [
        r["learning_rate"] * r.get("guard_scale", 1) for r in records if "learning_rate" in r
    ]
    is_slowed = bool(rates_I) and rates_I[-1] < STEADY * config.optimizer.learning_rate
    return row | {"is_slowed": is_slowed} | _traces(steps, squares, every)


def _of_history(config: ConfigDict, history: History, path: str) -> dict[str, Any]:
    """Returns the row of a log.

    Raises:
      FlagError: the log lacks the reward, the lag or the learning rate.
    """
    question = config.advise

    def value(signals: tuple[str, ...], given: float | None, flag: str, what: str) -> float:
        for name in signals:
            if name in history.signals:
                return float(np.nanmedian(history.signals[name]))
        if given is not None:
            return float(given)
        raise FlagError("log", path, f"it has no {what}: log it, or give --{flag}")

    signals = history.signals
    name = "eval_reward" if "eval_reward" in signals else "reward"
    if name not in signals:
        raise FlagError("log", path, "it has no reward, from which a collapse is seen: log it")
    there = np.isfinite(signals[name])
    rewards, steps = signals[name][there], history.step[there]
    if len(rewards) < FEWEST_RECORDS:
        hint = f"it has {len(rewards)} rewards: a collapse can be told from noise from "
        raise FlagError("log", path, f"{hint}{FEWEST_RECORDS} on")
    lag = value(("lag_mean", "lag_max"), question.max_lag, "max_lag", "lag")
    rate = value(("learning_rate",), question.learning_rate, "learning_rate", "learning rate")
    if not rate > 0:
        hint = "its learning rate is 0 in half of the records: log it with more digits"
        raise FlagError("log", path, hint)
    every, first = int(np.median(np.diff(steps))), int(steps[0])
    if (int(steps[-1]) - first) // every > MOST_PLACES:
        hint = f"its steps reach from {first} to {int(steps[-1])}, mostly {every} apart"
        raise FlagError("log", path, f"{hint}: give at most {MOST_PLACES} such distances")
    # Rewards are put on equal distances: the last one that was known at each place.
    places = np.arange(first, steps[-1] + 1, every)
    filled = rewards[np.searchsorted(steps, places, side="right") - 1]
    row = _row(lag, rate, filled, every, int(steps[-1]) + 1, True, first)
    if SIGN in signals:
        return row | _traces(history.step, signals[SIGN], every)
    if KL in signals:  # for small ratios it is half of the mean of (log ratio)^2
        return row | _traces(history.step, 2 * signals[KL], every)
    return row


def _traces(steps: np.ndarray, squares: np.ndarray, every: int) -> dict[str, Any]:
    """Returns the field `traces` of a row: means of (log ratio)^2 over blocks of `every` steps."""
    blocks = []
    for start in range(0, int(steps[-1]) + 1, every):
        within = squares[(steps >= start) & (steps < start + every)]
        within = within[np.isfinite(within)]
        blocks.append(float(within.mean()) if within.size else np.nan)
    return {"traces": {SIGN: blocks}}


def _row(
    lag: float,
    rate: float,
    rewards: np.ndarray,
    every: int,
    num_steps: int,
    is_finite: bool,
    first: int = 0,
) -> dict[str, Any]:
    """Returns a run as a row of a map. `first` is the learner step of the first reward."""
    collapse = detect_collapse(rewards, every, NUM_SAMPLES)
    return {
        "max_lag": lag,
        "learning_rate": rate,
        "collapse_step": None if collapse is None else first + collapse.step,
        "steps_run": num_steps,
        "steps": num_steps,
        "finite": is_finite,
        "trace_every": every,
        "seed": 0,
    }
