"""Times an asynchronous training against the synchronous loop.

    python -m experiments.async_speed --workdir=DIR

In the synchronous loop, generation and learning take turns. Their times there give a bound: no
overlap can make a step shorter than the longer of the two. `bound_share` says how near the
asynchronous run comes. On CPUs both threads share the cores, so the bound may be out of reach.

With `eval_every`, the summary has the rewards of both kinds at equal time too. Each repeat has a
seed of its own.
"""

import contextlib
import itertools
import os
import pathlib
import statistics
import time
from typing import Any

from ml_collections import ConfigDict

from experiments.async_train.__main__ import prepare
from experiments.common import cli
from staleness_grpo.errors import require

WARM_UP_STEPS = 2  # in which programs are compiled


class TurnsClock:
    """Adds up the time of generation and of learning in the synchronous loop."""

    def __init__(self) -> None:
        self.generation: list[float] = []  # seconds of each step, judging included
        self.learning: list[float] = []
        self._last = time.perf_counter()

    def __call__(self, part: str, arrays: Any) -> None:
        """Waits for the arrays of a part, and adds its time if generation or learning ends."""
        import jax

        jax.block_until_ready(arrays)
        now = time.perf_counter()
        if part == "buffer":
            self.generation.append(now - self._last)
        elif part == "records":
            self.learning.append(now - self._last)
        if part in ("buffer", "records"):
            self._last = now


def timed_steps(config: ConfigDict) -> slice:
    """Returns the steps that are timed.

    By the first, programs are compiled and the generator is S steps ahead if it can be. After the
    last, the generator has no more to do.
    """
    return slice(config.lag.max_lag + WARM_UP_STEPS, config.steps - config.lag.max_lag)


def rewards_at_equal_time(synchronous: list[dict], asynchronous: list[dict]) -> dict[str, float]:
    """Returns the rewards of two trainings when the first of them ends; none without evaluations.

    Times are from the end of the steps in which programs are compiled. A reward between two
    evaluations is on the line between them.

    Args:
      synchronous, asynchronous: the records of each training.
    """
    import numpy as np

    curves = []
    for records in (synchronous, asynchronous):
        timed = records[WARM_UP_STEPS:]
        ends = itertools.accumulate(record["time_step"] for record in timed)
        curve = [
            (end - record["time_step"], record["eval_reward"])
            for end, record in zip(ends, timed, strict=True)
            if "eval_reward" in record
        ]
        if not curve:
            return {}
        curves.append(curve)
    seconds = min(curve[-1][0] for curve in curves)
    rewards = [float(np.interp(seconds, *np.array(curve).T)) for curve in curves]
    names = ("synchronous_reward", "asynchronous_reward")
    return {"equal_time_seconds": seconds, **dict(zip(names, rewards, strict=True))}


def validate(config: ConfigDict) -> None:
    """Raises FieldError if the config cannot be run, or has too few steps."""
    from experiments.async_train.validation import validate as validate_asynchronous

    validate_asynchronous(config)
    least = 2 * config.lag.max_lag + WARM_UP_STEPS + 1
    require(config.steps >= least, "steps", f"give at least {least}, with this lag", config.steps)
    require(config.speed.repeats >= 1, "speed.repeats", "give a number >= 1", config.speed.repeats)


def measure_once(config: ConfigDict) -> dict[str, float]:
    """Returns the mean seconds of a step in each kind of training, and rewards at equal time."""
    from staleness_grpo.config.build import build_run
    from staleness_grpo.training.asynchronous import BackgroundGenerator
    from staleness_grpo.training.loop import train

    timed = timed_steps(config)
    with contextlib.closing(build_run(config)) as run:
        clock = TurnsClock()
        run.watch_with(clock)
        turns = list(train(run))
    generation, learning = (
        statistics.fmean(seconds[timed]) for seconds in (clock.generation, clock.learning)
    )
    with (
        contextlib.closing(build_run(config)) as run,
        BackgroundGenerator(run, lambda call, position, version: None) as source,
    ):
        records = list(train(run, source=source))
    asynchronous = statistics.fmean(record["time_step"] for record in records[timed])
    return {
        "generation_seconds": generation,
        "learning_seconds": learning,
        "synchronous_seconds": generation + learning,
        "asynchronous_seconds": asynchronous,
        "speedup": (generation + learning) / asynchronous,
        "bound_share": max(generation, learning) / asynchronous,
        **rewards_at_equal_time(turns, records),
    }


def main(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the measurement, and writes medians over the repeats to summary.json."""
    from experiments.common.numbers import write_and_print
    from experiments.common.workdir import write_run_files

    write_run_files(workdir, config)
    load, first_seed = os.getloadavg()[0], config.seed
    config = config.copy_and_resolve_references()
    repeats = []
    for repeat in range(config.speed.repeats):
        config.seed = first_seed + repeat
        repeats.append(measure_once(config))
    medians = {name: statistics.median(one[name] for one in repeats) for name in repeats[0]}
    ranges = {
        f"{name}_range": [min(values), max(values)]
        for name in ("speedup", "bound_share", "synchronous_reward", "asynchronous_reward")
        if (values := [one[name] for one in repeats if name in one])
    }
    # A load of more than 0 at the start means that other programs take part of the cores.
    write_and_print(
        medians | ranges | {"repeats": len(repeats), "load_average_at_start": load}, workdir
    )


def command() -> None:
    """Runs the measurement from the command line."""
    cli.run(
        main,
        cli.draw_nothing,
        default_config="experiments/configs/async_speed.py",
        validate=validate,
        prepare=prepare,
    )
