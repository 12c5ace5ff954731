"""The plan of a sweep measures a learner step of a cell itself, and leaves compilation out."""

import concurrent.futures
import contextlib
import itertools
import re
import subprocess
import sys
import types

import pytest
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.configs import small_map
from experiments.sweep import grid, plan
from experiments.sweep.engine import COMPILED, LOOP
from experiments.sweep.measure import duration
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.records import write_jsonl
from staleness_grpo.training import loop
from tests.helpers import bigram

NOTHING_GIVEN = plan.Given(step_seconds=None, devices=None)


def tiny_map(**overrides):
    """Returns a map of four cells of eight steps, which is evaluated at every second step."""
    config = small_map.get_config()
    config.update(dict(steps=8, num_prompts=4, group_size=4, eval_every=2))
    bigram.put_into(config)
    config.sweep.update(
        dict(max_lags=(0, 1), learning_rates=(1e-2, 1e-1), seeds=(0,), horizons=(8,))
    )
    config.sweep.num_workers = 2
    config.update_from_flattened_dict(overrides)
    grid.validate(config)
    return config


def fields_of(config, max_lag=1):
    """Returns the fields of a cell, as a worker process gets them."""
    cells = grid.cells(config).values()
    return next(cell.to_dict() for cell in cells if cell.lag.max_lag == max_lag)


def clock(times):
    """Returns a module of time that shows these times, one after the other."""
    rest = itertools.chain(times, itertools.count(1e9, 1e9))
    return types.SimpleNamespace(perf_counter=lambda: float(next(rest)))


@pytest.fixture
def measured_here(monkeypatch):
    """Runs in this process what a worker measures. Returns the list of (function, seconds)."""
    found = []

    class Pool:
        def submit(self, measure, *arguments):
            future = concurrent.futures.Future()
            future.set_result(measure(*arguments))
            found.append((measure, future.result()))
            return future

    @contextlib.contextmanager
    def worker_pool(num_workers):
        assert num_workers == 1  # a second one would slow down the first
        yield Pool()

    monkeypatch.setattr(plan, "worker_pool", worker_pool)
    return found


@pytest.mark.parametrize(
    ("name", "measure"),
    [(COMPILED, plan._compiled_step_seconds), (LOOP, plan._loop_step_seconds)],
)
def test_a_plan_has_the_time_that_was_measured_with_the_engine_of_the_map(
    name, measure, measured_here, tmp_path
):
    config = tiny_map(**{"sweep.engine": name})
    done = list(grid.cells(config))[0]
    write_jsonl(tmp_path / "cells.jsonl", [{"cell": done}])
    main, total, _ = plan.plan(config, tmp_path, NOTHING_GIVEN).splitlines()
    ((used, seconds),) = measured_here
    assert used is measure and 0 < seconds < 60
    assert main == (
        f"main: 3 of 4 cells are left, 24 learner steps; cells: {name}, 2 at once on 1 device(s) "
        f"each; a step takes {seconds:.3g} s (measured): {duration(24 * seconds / 2)}"
    )
    hours = 24 * seconds / 3600  # both cells that run at once use a device
    assert total.startswith(
        f"together at most {duration(24 * seconds / 2)}, {hours:.3g} device-hours"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cells.jsonl"]


def test_each_map_is_measured_at_its_largest_lag_and_a_finished_one_is_not(monkeypatch, tmp_path):
    config = tiny_map()
    with config.unlocked():
        config.variants = ConfigDict(
            dict(
                late=dict(sweep=dict(max_lags=(3, 0))),
                done=dict(sweep=dict(max_lags=(2,))),
            )
        )
    done = grid.cells(grid.variant_configs(config)["done"])
    write_jsonl(tmp_path / "cells-done.jsonl", [{"cell": name} for name in done])
    lags = []

    def measure(variant, cell):
        lags.append(cell.lag.max_lag)
        return float(cell.lag.max_lag)

    monkeypatch.setattr(plan, "_step_seconds", measure)
    main, finished, late, total, _ = plan.plan(config, tmp_path, NOTHING_GIVEN).splitlines()
    assert lags == [1, 3]
    assert "a step takes 1 s (measured): 16 s" in main  # 4 cells of 8 steps, 2 at once
    assert "a step takes 3 s (measured): 48 s" in late
    assert finished == "done: 0 of 2 cells are left, 0 learner steps"
    assert total.startswith("together at most 64 s, ")


@pytest.mark.parametrize(
    ("max_lag", "steps_run"),
    [
        (0, 4),  # two blocks of eval_every = 2 steps
        (5, 6),  # as many blocks as the lag is long, so that the oldest version is used
    ],
)
def test_a_compiled_cell_is_timed_after_its_compilation(max_lag, steps_run, monkeypatch):
    fields = fields_of(tiny_map(**{"sweep.max_lags": (0, 5)}), max_lag)
    # It compiles for 1000 s. Then it takes 30 s, and then 12 s.
    monkeypatch.setattr(plan, "time", clock([0, 1000, 2000, 2030, 3000, 3012]))
    assert plan._compiled_step_seconds(fields, 100) == pytest.approx(12 / steps_run)


def test_steps_of_the_loop_are_timed_between_two_evaluations_after_the_first_ones(monkeypatch):
    # Steps 0 to 3 take 100 s each, because they compile. Steps 4 and 5 take 1 s and 4 s.
    monkeypatch.setattr(loop, "time", clock([0, 100, 200, 300, 400, 401, 405]))
    assert plan._loop_step_seconds(fields_of(tiny_map()), 100) == pytest.approx(2.5)


def test_a_run_of_the_loop_is_closed_after_the_measurement(monkeypatch):
    closed = []
    build_run = plan.build_run

    def watched(cell):
        run = build_run(cell)
        monkeypatch.setattr(run, "close", lambda: closed.append(run))
        return run

    monkeypatch.setattr(plan, "build_run", watched)
    plan._loop_step_seconds(fields_of(tiny_map()), 100)
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("eval_every", "needed"),
    [
        (1, 4),  # three steps compile, and one is measured
        (2, 6),
        (3, 6),
        (4, 8),
    ],
)
def test_a_cell_of_the_loop_with_too_few_steps_is_refused_in_one_line(
    eval_every, needed, monkeypatch
):
    fields = fields_of(tiny_map())
    hint = f"too few to measure: give {needed} or more, or --plan_step_seconds"
    fields |= {"eval_every": eval_every, "steps": needed - 1}
    with pytest.raises(FlagError, match=f"^--config.steps={needed - 1}: {hint}$"):
        plan._loop_step_seconds(fields, 100)
    fields["steps"] = needed
    monkeypatch.setattr(plan, "build_run", lambda cell: 1 / 0)  # it is not refused any more
    with pytest.raises(ZeroDivisionError):
        plan._loop_step_seconds(fields, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", [COMPILED, LOOP])
def test_the_command_measures_in_a_worker_prints_the_plan_and_makes_no_folder(name, tmp_path):
    overrides = (
        *("steps=8", "num_prompts=4", "group_size=4", "eval_every=2", f"sweep.engine={name}"),
        *("sweep.max_lags=(0,1)", "sweep.learning_rates=(1e-2,)", "sweep.seeds=(0,)"),
        *("sweep.horizons=(8,)", f"policy.name={bigram.NAME}"),
    )
    folder = tmp_path / "map"
    command = [sys.executable, "-m", "experiments.sweep", f"--workdir={folder}", "--plan"]
    command.append("--config=experiments/configs/small_map.py")
    command += [f"--config.{override}" for override in overrides]
    done = subprocess.run(command, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    main, total, rest = done.stdout.splitlines()
    found = re.fullmatch(
        rf"main: 2 of 2 cells are left, 16 learner steps; cells: {name}, \d+ at once on 1 device.s."
        r" each; a step takes (\S+) s \(measured\): \S.*",
        main,
    )
    assert found and 0 < float(found[1]) < 60
    assert total.startswith("together at most ") and rest.startswith("imports, compilation")
    assert not folder.exists()
