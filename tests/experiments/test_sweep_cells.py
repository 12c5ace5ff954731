"""A sweep's cells: their configs, what is refused, shares of a map, and a sweep that is killed."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.configs import scaling_laws, scaling_laws_full
from experiments.sweep import grid, measure
from staleness_grpo.errors import FieldError, FlagError
from staleness_grpo.runtime.records import read_jsonl
from tests.conftest import ROOT


@pytest.mark.parametrize("config", [scaling_laws.get_config(), scaling_laws_full.get_config()])
def test_shipped_configs_are_valid_and_their_cells_have_names_of_their_own(config):
    grid.validate(config)
    for variant in grid.variant_configs(config).values():
        shape = variant.sweep
        cells = grid.cells(variant)
        assert len(cells) == len(shape.max_lags) * len(shape.learning_rates) * len(shape.seeds)
        warm_starts = {cell.warm_start.seed for cell in cells.values()}
        assert warm_starts == set(range(min(2, len(shape.seeds))))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("sweep.max_lags", (0, 600), "sweep.max_lags"),
        ("sweep.seeds", (), "sweep.seeds"),
        ("sweep.learning_rates", (1e-3, 1e-3), "sweep.learning_rates"),
        ("sweep.chunk_size", 0, "sweep.chunk_size"),
        ("eval_every", 7, "eval_every"),
        ("lag.schedule", "unifrom", "lag.schedule"),
        ("variants.cyclic.lag.schedule", "unifrom", "variants.cyclic.lag.schedule"),
        ("optimizer.b1", 1.5, "optimizer.b1"),
        ("sweep.engine", "fast", "sweep.engine"),
        ("heldout.every", 3, "heldout.every"),
        ("sweep.seeds", (-1,), "sweep.seeds"),
        ("sweep.learning_rates", (0.0,), "sweep.learning_rates"),
        ("variants.cyclic.sweep.seeds", (-1,), "variants.cyclic.sweep.seeds"),
        ("variants.cyclic.sweep.chunk_size", 0, "variants.cyclic.sweep.chunk_size"),
    ],
)
def test_bad_sweeps_are_refused_by_field(field, value, named):
    config = scaling_laws.get_config()
    config.update_from_flattened_dict({field: value})
    if field == "heldout.every":
        config.heldout.fraction = 0.5
    with pytest.raises(FieldError, match=f"^{re.escape(named)}=") as refused:
        grid.validate(config)
    assert refused.value.field == named
    assert str(FlagError.of_field(refused.value)).startswith(f"--config.{named}=")


@pytest.mark.parametrize(
    ("differences", "line"),
    [
        (dict(lagg=dict(start="full")), "lagg.start=full: there is no field of this name"),
        (dict(lag=dict(stat="full")), "lag.stat=full: there is no field of this name"),
        (dict(steps="many"), "steps=many: give a value of type int, as in 600"),
        (dict(lag=3), "lag=3: this is a section: give its fields"),
    ],
)
def test_a_variant_of_fields_that_do_not_exist_is_refused(differences, line):
    config = scaling_laws.get_config()
    config.variants.other = differences
    with pytest.raises(FieldError, match=f"^variants.other.{line}"):
        grid.validate(config)


def test_a_half_written_file_of_a_share_is_not_gathered(tmp_path):
    names = ["cells.share-1-of-2.jsonl", "cells.share-2-of-2.jsonl"]
    others = ["cells.share-1-of-2.host-7.partial.jsonl", "cells-cyclic.share-1-of-2.jsonl"]
    for name in (*names, *others):
        (tmp_path / name).touch()
    assert measure.share_files(tmp_path / "cells.jsonl") == [tmp_path / name for name in names]


@pytest.mark.parametrize("value", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(FlagError, match=f"^--share={re.escape(value)}: give I/N"):
        measure.Share.parse(value)


def test_shares_run_every_cell_once_and_are_gathered(tmp_path, monkeypatch):
    """A share that is run again, or after the whole, runs nothing; a missing one is made up for."""
    config = scaling_laws.get_config()
    config.sweep.update(dict(max_lags=(0, 1), learning_rates=(1e-3, 2e-3), seeds=(0, 1)))
    ran = []

    def run_cells(cells, **settings):
        ran.extend(cells)
        return ({"cell": cell, "steps_run": 1} for cell in reversed(cells))

    monkeypatch.setattr(measure, "run_cells", run_cells)
    names = list(grid.cells(config))
    for index in (2, 3, 2):
        records = measure.run_map("main", config, tmp_path, measure.Share(index, 3))
        assert [record["cell"] for record in records] == names[index - 1 :: 3]
    assert ran == names[1::3] + names[2::3]
    parts = {path: path.read_bytes() for path in tmp_path.glob("cells.share-*")}
    records = measure.run_map("main", config, tmp_path)
    assert [record["cell"] for record in records] == names and sorted(ran) == sorted(names)
    assert measure.run_map("main", config, tmp_path, measure.Share(1, 3)) == [] and len(ran) == len(
        names
    )
    assert parts == {path: path.read_bytes() for path in parts}
    (tmp_path / "alone").mkdir()
    measure.run_map("main", config, tmp_path / "alone")
    assert (tmp_path / "alone" / "cells.jsonl").read_bytes() == (
        tmp_path / "cells.jsonl"
    ).read_bytes()


@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_like_one_that_was_not(tmp_path):
    def start(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.programs.run_sweep_cells", str(folder)]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})

    assert start("whole").wait() == 0
    whole = read_jsonl(tmp_path / "whole" / "cells.jsonl")
    assert len(whole) == 72
    path = tmp_path / "killed" / "cells.jsonl"
    rng = random.Random(0)
    counts = []
    for kill in range(3):
        process = start("killed")
        count = (kill + 1) * 15 + rng.randrange(10)
        while process.poll() is None and (
            not path.exists() or path.read_bytes().count(b"\n") < count
        ):
            time.sleep(0.005)
        time.sleep(0.05 * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it was running
        counts.append(path.read_bytes().count(b"\n"))
        assert counts[-1] >= count
    assert counts == sorted(counts) and counts[-1] < 72
    assert start("killed").wait() == 0
    killed = read_jsonl(path)
    for record in whole + killed:
        record.pop("time_cell")
    assert killed == whole
