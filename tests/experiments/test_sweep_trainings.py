"""Maps whose cells are trainings of the loop: a text task, kills, shares, the choice of engine."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.common import cli
from experiments.common.workdir import exclusive
from experiments.configs import scaling_laws, small_map
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid, measure, plan, trainings
from experiments.sweep.engine import COMPILED, LOOP, engine, why_loop
from experiments.sweep.measure import duration
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_json, read_jsonl, write_jsonl
from tests.conftest import ROOT
from tests.programs import text_map_config

SECONDS = 400  # of a sweep in a process of its own


@pytest.fixture(scope="module")
def model(byte_folder):
    return byte_folder


def start(workdir, model, *flags):
    config = [f"--config={text_map_config.__file__}", f"--config.policy.checkpoint={model}"]
    command = [sys.executable, "-m", "experiments.sweep", *config, f"--workdir={workdir}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def without_times(path):
    return [{**record, "time_cell": None} for record in read_jsonl(path)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lag.schedule", "uniform"),
        ("metrics.paired_every", 5),
        ("microbatch_prompts", 8),
        ("save_policy", True),
        ("sinks.tensorboard", True),
    ],
)
def test_the_loop_runs_what_cannot_be_compiled(field, value):
    config = small_map.get_config()
    assert engine(config) == COMPILED and why_loop(config) is None
    config.update_from_flattened_dict({field: value})
    assert engine(config) == LOOP
    config.sweep.engine = "compiled"
    with pytest.raises(FieldError, match=rf"^{field}={value}: a compiled sweep"):
        engine(config)


def test_a_policy_too_large_for_a_ring_of_versions_runs_in_the_loop():
    config = scaling_laws.get_config()
    config.policy.update(dict(d_model=512, d_ff=2048, num_layers=4))
    assert engine(config) == LOOP
    config.sweep.max_lags = (0, 1)
    assert engine(config) == COMPILED


def test_trainings_are_not_vectorized():
    config = small_map.get_config()
    config.sweep.update(dict(engine="loop", chunk_size=4))
    with pytest.raises(FieldError, match="^sweep.chunk_size=4: only compiled cells"):
        grid.validate(config)


@pytest.mark.slow
def test_a_map_of_a_text_task_has_trainings_records_and_figures(model, tmp_path):
    config = text_map_config.get_config()
    config.policy.checkpoint, config.steps = str(model), 4
    config.sweep.update(dict(learning_rates=(1e-2,), horizons=(4,)))
    grid.validate(config)
    cli.complete(sweep.main, sweep.draw, config, tmp_path)
    cells = read_jsonl(tmp_path / "cells.jsonl")
    assert [cell["max_lag"] for cell in cells] == [0, 1]
    for cell in cells:
        folder = trainings.folder(tmp_path, grid.MAIN) / cell["cell"]
        steps = read_jsonl(folder / "metrics.jsonl")
        heldout = [step["heldout_reward"] for step in steps if "heldout_reward" in step]
        np.testing.assert_allclose(cell["traces"]["heldout_reward"], heldout, rtol=1e-5)
        assert (cell["first"], cell["peak"]) == (heldout[0], max(heldout))
        assert cell["paired"]["num_comparisons"] > 0
        assert not (folder / "checkpoints").exists() and (folder / trainings.LOG).exists()
    assert cells[0]["paired"]["bias_norm"] == 0.0  # at lag 0 both gradients are the same
    summary = read_json(tmp_path / "summary.json")
    assert [cell["max_lag"] for cell in summary["paired_bias"]["by_cell"]] == [0, 1]
    assert {claim["name"] for claim in summary["claims"]} == {"bias_at_lag_0"}
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn == {"scaling_map", "scaling_usable", "scaling_paired_bias"}


def test_shares_may_run_side_by_side_and_the_whole_may_not(tmp_path):
    with exclusive(tmp_path, "share-1-of-2"), exclusive(tmp_path, "share-2-of-2"):
        with pytest.raises(FlagError, match="another process uses this folder"):
            with exclusive(tmp_path):
                pass
        with pytest.raises(FlagError, match="another process uses this folder"):
            with exclusive(tmp_path, "share-1-of-2"):
                pass
    with exclusive(tmp_path):
        with pytest.raises(FlagError, match="another process uses this folder"):
            with exclusive(tmp_path, "share-1-of-2"):
                pass


def test_a_plan_counts_what_is_left_and_writes_nothing(tmp_path):
    config = small_map.get_config()
    config.mesh.fsdp = 2  # not of this machine: the step's time is given
    given = plan.Given(step_seconds=0.5, devices=8)
    names = list(grid.cells(config))
    write_jsonl(tmp_path / "cells.jsonl", [{"cell": name} for name in names[:4]])
    before = (tmp_path / "cells.jsonl").read_bytes()
    main, total, rest = plan.plan(config, tmp_path, given).splitlines()
    assert main.startswith("main: 60 of 64 cells are left, 6000 learner steps; cells: loop, 1 at")
    assert main.endswith("on 8 device(s) each; a step takes 0.5 s (given): 50 min")
    assert total.startswith("together at most 50 min, 6.67 device-hours")
    assert rest == "imports, compilation and warm starts come on top"
    assert list(tmp_path.iterdir()) == [tmp_path / "cells.jsonl"]
    assert (tmp_path / "cells.jsonl").read_bytes() == before


def test_the_time_left_leaves_out_the_first_cell_of_each_core(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measure, "usable_cores", lambda: [0, 1])
    clock = measure.Clock(10)
    # Two cores compile for 200 s, and then need 100 s for each cell.
    for second, expected in ((200, ""), (201, ""), (300, ""), (301, "about 5 min left")):
        now[0] = float(second)
        clock.advance(1)
        assert expected in (printed := capsys.readouterr().err)
        assert bool(printed) == bool(expected)


def test_a_time_is_said_in_words():
    words = [duration(seconds) for seconds in (4.2, 89, 90, 5400, 86400)]
    assert words == ["4 s", "89 s", "2 min", "1 h 30 min", "24 h 0 min"]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, model).wait(SECONDS) == 0
    return folder


@pytest.mark.slow
def test_a_map_of_trainings_killed_five_times_ends_like_one_that_was_not(whole, model, tmp_path):
    rng = random.Random(0)
    records = 0
    for kill in range(5):
        process = start(tmp_path, model)
        target = records + rng.randint(2, 7)
        while process.poll() is None and records < target:
            files = tmp_path.glob("trainings/main/*/metrics.jsonl")
            records = sum(path.read_bytes().count(b"\n") for path in files)
            time.sleep(0.005)
        time.sleep(0.05 * rng.random())
        sign = signal.SIGTERM if kill == 2 else signal.SIGKILL
        process.send_signal(sign)
        # After SIGTERM the trainings are saved.
        assert process.wait(SECONDS) == (75 if sign == signal.SIGTERM else -sign)
        time.sleep(1.5)  # the workers look for their parent twice in a second
    assert start(tmp_path, model).wait(SECONDS) == 0
    assert without_times(tmp_path / "cells.jsonl") == without_times(whole / "cells.jsonl")
    assert (tmp_path / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()


@pytest.mark.slow
def test_two_shares_on_two_processes_give_the_file_of_one(whole, model, tmp_path):
    shares = [start(tmp_path, model, f"--share={index}/2") for index in (1, 2)]
    assert [share.wait(SECONDS) for share in shares] == [0, 0]
    assert start(tmp_path, model).wait(SECONDS) == 0
    assert without_times(tmp_path / "cells.jsonl") == without_times(whole / "cells.jsonl")
