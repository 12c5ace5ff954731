"""Several processes, or other numbers of devices, as one run; and how a process knows its place."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from staleness_grpo.errors import FlagError
from staleness_grpo.runtime import distributed
from staleness_grpo.runtime.distributed import Hosts
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.training.rollouts import batch_layouts
from tests.helpers import killing

CONFIG = "tests/programs/several_processes_config.py"
EIGHT = dict(devices=8, mesh=(2, 2, 2))
TWICE_FOUR = dict(devices=4, num_processes=2, mesh=(2, 2, 2))
NO_FLAGS = dict(coordinator=None, num_processes=None, process_id=None)
SLURM = dict(
    SLURM_STEP_NODELIST="node[1-2]",
    SLURM_NTASKS="2",
    SLURM_PROCID="1",
    SLURM_JOB_ID="7",
    SLURM_LOCALID="0",
)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({}, {}, None),
        (
            dict(coordinator="node1:1234", num_processes=2, process_id=1),
            {},
            Hosts("node1:1234", 2, 1),
        ),
        (
            dict(process_id=0),  # a flag comes before its variable
            dict(JAX_COORDINATOR_ADDRESS="[::1]:9", JAX_NUM_PROCESSES="3", JAX_PROCESS_ID="2"),
            Hosts("[::1]:9", 3, 0),
        ),
        ({}, SLURM, Hosts("auto")),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, None),
        # The batch script itself, not a step of it.
        ({}, {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, None),
        (dict(coordinator="auto"), {}, Hosts("auto")),
    ],
)
def test_hosts_are_found(flags, environment, expected):
    assert distributed.find(NO_FLAGS | flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (
            dict(coordinator="node1:1234", num_processes=2),
            {},
            "--process_id=: --coordinator, --num_processes alone",
        ),
        (dict(process_id=1), {}, "--coordinator=: --process_id alone"),
        (
            dict(coordinator="node1", num_processes=2, process_id=1),
            {},
            "--coordinator=node1: give HOST:PORT",
        ),
        (
            dict(coordinator="node1:x", num_processes=2, process_id=1),
            {},
            "--coordinator=node1:x: give HOST:PORT",
        ),
        (
            dict(coordinator="node1:1", num_processes=0, process_id=0),
            {},
            "--num_processes=0: give a number >= 1",
        ),
        (
            dict(coordinator="node1:1", num_processes=2, process_id=2),
            {},
            "--process_id=2: give a number from 0 to 1",
        ),
        (
            dict(coordinator="node1:1", num_processes=2, process_id=-1),
            {},
            "--process_id=-1: give a number from 0 to 1",
        ),
        (
            dict(coordinator="auto", num_processes=2),
            {},
            "--num_processes=2: --coordinator=auto finds num_processes by itself",
        ),
        (
            {},
            dict(JAX_NUM_PROCESSES="two"),
            "--num_processes=two: the variable JAX_NUM_PROCESSES must be a number",
        ),
    ],
)
def test_contradictions_are_refused(flags, environment, message):
    with pytest.raises(FlagError) as error:
        distributed.find(NO_FLAGS | flags, environment)
    assert str(error.value).startswith(message)


def test_a_pair_stands_in_a_row_of_the_process_that_keeps_its_slot():
    rng = np.random.default_rng(0)
    # The rows of a process need not be neighbors.
    owner_N = np.repeat([1, 0, 2], 2)[np.array([0, 2, 4, 1, 3, 5])]
    for num_pairs in (0, 1, 5, 17):
        owner_W = rng.integers(3, size=num_pairs)
        seen = []
        for layout_N in batch_layouts(owner_W, owner_N):
            rows = np.flatnonzero(layout_N >= 0)
            np.testing.assert_array_equal(owner_W[layout_N[rows]], owner_N[rows])
            seen += list(layout_N[rows])
        assert sorted(seen) == list(range(num_pairs))
    alone = [list(layout) for layout in batch_layouts(np.zeros(5, int), np.zeros(3, int))]
    assert alone == [[0, 1, 2], [3, 4, -1]]


class Machine:
    """A machine of simulated devices that starts trainings, of one process or of several."""

    def __init__(self):
        self.processes = []

    def start(self, workdir, num_processes=1, devices=8, mesh=(1, 1, 1), **overrides):
        """Starts the processes of one training; `devices` is their number in each process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fields = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True)) | overrides
        command = [sys.executable, "-m", "experiments.train"]
        command += [f"--config={CONFIG}", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        started = []
        for process_id in range(num_processes):
            hosts = [
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={num_processes}",
                f"--process_id={process_id}",
            ]
            process = subprocess.Popen(
                command + (hosts + ["--heartbeat=10"] if num_processes > 1 else []),
                cwd=killing.ROOT,
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        self.processes += started
        return started

    def run(self, workdir, **how):
        """Runs a training to its end; takes the arguments of `start`."""
        for process in self.start(workdir, **how):
            code, errors = killing.end(process, seconds=240)
            assert code == 0, errors


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    for process in machine.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def records(workdir):
    return killing.ending(workdir)[0]


def unread(folder):
    """Returns the groups in flight of all processes, as {(step, slot): bytes}."""
    groups = {}
    for path in sorted(folder.glob("buffer_*.npz")):
        saved = dict(np.load(path))
        pairs = zip(saved["steps_W"].tolist(), saved["slots_W"].tolist(), strict=True)
        for index, pair in enumerate(pairs):
            assert pair not in groups
            groups[pair] = b"".join(saved[name][index].tobytes() for name in sorted(saved))
    return groups


def copy_as_before(workdir, step, copy):
    """Copies a run as it was when the checkpoint before `step` was the newest."""
    shutil.copytree(workdir, copy)
    (copy / "summary.json").unlink()
    for path in (copy / "checkpoints").iterdir():
        if path.name > f"step_{step:08d}":
            shutil.rmtree(path)
    return copy


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_other_meshes(machine, tmp_path):
    """Goes from 1 device to 8 to 1, and from 8 devices to 2 processes with 4 each and back."""
    machine.run(tmp_path / "one", devices=1)
    expected = [json.loads(line) for line in records(tmp_path / "one")]
    route: list[tuple[str, int, str, dict]] = [
        ("one", 4, "eight", EIGHT),
        ("eight", 8, "one_again", dict(devices=1)),
        ("eight", 4, "twice_four", TWICE_FOUR),
        ("twice_four", 8, "eight_again", EIGHT),
    ]
    for source, step, target, how in route:
        workdir = copy_as_before(tmp_path / source, step, tmp_path / target)
        checkpoint = pathlib.Path("checkpoints", f"step_{step:08d}")
        before = unread(workdir / checkpoint)
        machine.run(workdir, **how)
        assert before == unread(tmp_path / source / checkpoint) and len(before) > 4
        for record, wanted in zip(map(json.loads, records(workdir)), expected, strict=True):
            for name in ("reward", "lag_histogram"):
                assert record[name] == wanted[name]
            # Sums are in another order, and Adam magnifies where a gradient is nearly 0.
            assert record["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
            assert record["param_norm"] == pytest.approx(wanted["param_norm"], rel=1e-5)
        ours, theirs = killing.final_arrays(workdir), killing.final_arrays(tmp_path / "one")
        for leaf in (leaf for leaf in theirs if ".params" in leaf):
            values, wanted = (np.frombuffer(arrays[leaf], np.float32) for arrays in (ours, theirs))
            np.testing.assert_allclose(values, wanted, atol=2e-3, err_msg=leaf)
    # The buffer travels exactly: what was sampled before the move is what is read after it.
    checkpoint = tmp_path / "twice_four" / "checkpoints" / "step_00000008"
    assert len(list(checkpoint.glob("buffer_*.npz"))) == 2


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_both_go_on_exactly(machine, tmp_path):
    """Kills each of two processes once: the other ends within 30 s and says why; all is exact."""
    overrides = {"steps": 200, "checkpoint.save_every": 20, "checkpoint.keep": 2}
    machine.run(tmp_path / "whole", **TWICE_FOUR, **overrides)
    for victim, num_records in ((1, 50), (0, 110)):
        processes = machine.start(tmp_path / "killed", **TWICE_FOUR, **overrides)
        while killing.num_records(tmp_path / "killed") < num_records:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        processes[victim].kill()
        start = time.monotonic()
        code, errors = killing.end(processes[1 - victim], seconds=60)
        seconds = time.monotonic() - start
        print(f"process {victim} killed: the other ended after {seconds:.1f} s with code {code}")
        assert code not in (0, None) and seconds < 30
        assert "another task died" in errors or "another one may be lost" in errors
        assert processes[victim].wait(10) == -signal.SIGKILL
    machine.run(tmp_path / "killed", **TWICE_FOUR, **overrides)
    assert killing.ending(tmp_path / "killed") == killing.ending(tmp_path / "whole")
    assert len(records(tmp_path / "whole")) == 200


@pytest.mark.slow
def test_preempted_processes_save_at_the_same_step_and_go_on(machine, tmp_path):
    machine.run(tmp_path / "whole", **TWICE_FOUR, **{"steps": 40})
    processes = machine.start(tmp_path / "preempted", **TWICE_FOUR, **{"steps": 40})
    while killing.num_records(tmp_path / "preempted") < 10:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)  # as when one node of several is taken away
    for process in processes:
        code, errors = killing.end(process, seconds=90)
        assert code == 75 and "run the same command to go on" in errors, errors
    assert killing.num_records(tmp_path / "preempted") < 40
    machine.run(tmp_path / "preempted", **TWICE_FOUR, **{"steps": 40})
    assert killing.ending(tmp_path / "preempted") == killing.ending(tmp_path / "whole")


@pytest.mark.slow
def test_saves_of_several_processes_do_not_mix_with_the_update(machine, tmp_path):
    """KempnerInstitute/KempnerForge#105. A save at every second step; one in thirty crashed.

    Takes a minute.
    """
    often = {"steps": 120, "checkpoint.save_every": 2, "checkpoint.keep": 2, "eval_every": 0}
    machine.run(tmp_path / "run", num_processes=2, devices=1, mesh=(2, 1, 1), **often)
    assert len(records(tmp_path / "run")) == 120


@pytest.mark.slow
def test_samples_of_two_processes_are_those_of_one(machine, tmp_path):
    """Either process may hold the groups; process 0 writes them. Takes half a minute."""
    settings = {"metrics.samples_every": 1, "metrics.num_samples": 7, "steps": 4, "eval_every": 0}
    machine.run(tmp_path / "one", devices=1, **settings)
    machine.run(tmp_path / "two", **TWICE_FOUR, **settings)
    one, two = (read_jsonl(tmp_path / name / "samples.jsonl") for name in ("one", "two"))
    assert len(one) == 4 * 7
    for of_one, of_two in zip(one, two, strict=True):
        for name, value in of_one.items():
            if name.startswith("log_ratio"):  # meshes sum in another order, in float32
                np.testing.assert_allclose(of_two[name], value, atol=1e-5)
            else:
                assert of_two[name] == value
