"""Several real processes on this machine, and other numbers of devices, as one run; and who a process is."""

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

from staleness_grpo import distributed
from staleness_grpo.config import FlagError
from staleness_grpo.distributed import Hosts
from staleness_grpo.rollouts import batch_layouts
from tests import killing

NONE = dict(coordinator=None, num_processes=None, process_id=None)
SLURM = dict(SLURM_STEP_NODELIST="node[1-2]", SLURM_NTASKS="2", SLURM_PROCID="1", SLURM_JOB_ID="7", SLURM_LOCALID="0")


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ({}, {}, None),
        (dict(coordinator="node1:1234", num_processes=2, process_id=1), {}, Hosts("node1:1234", 2, 1)),
        (
            dict(process_id=0),  # a flag comes before its variable
            dict(JAX_COORDINATOR_ADDRESS="[::1]:9", JAX_NUM_PROCESSES="3", JAX_PROCESS_ID="2"),
            Hosts("[::1]:9", 3, 0),
        ),
        ({}, SLURM, Hosts("auto")),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, None),
        ({}, {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, None),  # the batch script itself, not a step of it
        (dict(coordinator="auto"), {}, Hosts("auto")),
    ],
)
def test_hosts_are_found(flags, environment, expected):
    assert distributed.find(NONE | flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        (dict(coordinator="node1:1234", num_processes=2), {}, "--process_id=: --coordinator, --num_processes alone"),
        (dict(process_id=1), {}, "--coordinator=: --process_id alone"),
        (dict(coordinator="node1", num_processes=2, process_id=1), {}, "--coordinator=node1: give HOST:PORT"),
        (dict(coordinator="node1:x", num_processes=2, process_id=1), {}, "--coordinator=node1:x: give HOST:PORT"),
        (dict(coordinator="node1:1", num_processes=0, process_id=0), {}, "--num_processes=0: give a number >= 1"),
        (dict(coordinator="node1:1", num_processes=2, process_id=2), {}, "--process_id=2: give a number from 0 to 1"),
        (dict(coordinator="node1:1", num_processes=2, process_id=-1), {}, "--process_id=-1: give a number from 0 to 1"),
        (dict(coordinator="auto", num_processes=2), {}, "--num_processes=2: --coordinator=auto finds it"),
        ({}, dict(JAX_NUM_PROCESSES="two"), "--num_processes=two: the variable JAX_NUM_PROCESSES must be a number"),
    ],
)
def test_contradictions_are_refused(flags, environment, said):
    with pytest.raises(FlagError) as error:
        distributed.find(NONE | flags, environment)
    assert str(error.value).startswith(said)


def test_a_pair_stands_in_a_row_of_the_process_that_keeps_its_slot():
    rng = np.random.default_rng(0)
    owner_N = np.repeat([1, 0, 2], 2)[np.array([0, 2, 4, 1, 3, 5])]  # rows of a process need not be neighbors
    for num_pairs in (0, 1, 5, 17):
        owner_K = rng.integers(3, size=num_pairs)
        seen = []
        for layout_N in batch_layouts(owner_K, owner_N):
            rows = np.flatnonzero(layout_N >= 0)
            np.testing.assert_array_equal(owner_K[layout_N[rows]], owner_N[rows])
            seen += list(layout_N[rows])
        assert sorted(seen) == list(range(num_pairs))
    alone = [list(layout) for layout in batch_layouts(np.zeros(5, int), np.zeros(3, int))]
    assert alone == [[0, 1, 2], [3, 4, -1]]


CONFIG = """
from ml_collections import ConfigDict
from staleness_grpo import config as config_lib
def get_config():
    config = config_lib.default()
    config.update(dict(steps=12, num_prompts=8, group_size=4, eval_every=4))
    config.warm_start.steps = 0
    config.policy.update(dict(num_layers=1, d_model=16, num_heads=4, num_kv_heads=4, head_dim=4, d_ff=16))
    config.lag.update(dict(max_lag=3, schedule="uniform"))
    config.checkpoint.update(dict(save_every=4, keep=99))
    config.task = ConfigDict(dict(name="enumerable", vocab_size=5, max_response_length=4, num_prompts=8))
    return config
"""


class Machine:
    """Starts trainings on simulated devices, as one process or as several, and ends what is left of them."""

    def __init__(self, folder: pathlib.Path):
        self.config = folder / "config.py"
        self.config.write_text(CONFIG)
        self.processes = []

    def start(self, workdir, num_processes=1, devices=8, mesh=(1, 1, 1), **overrides):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fields = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True)) | overrides
        command = [sys.executable, "-m", "experiments.train", f"--config={self.config}", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        started = []
        for i in range(num_processes):
            hosts = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}", f"--process_id={i}"]
            started.append(
                subprocess.Popen(
                    [*command, *(hosts + ["--heartbeat=10"] if num_processes > 1 else [])],
                    cwd=killing.ROOT,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )  # fmt: skip
            )
        self.processes += started
        return started

    def run(self, workdir, **how):
        for process in self.start(workdir, **how):
            code, errors = killing.end(process, seconds=240)
            assert code == 0, errors


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    for process in machine.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def records(workdir):
    return killing.ending(workdir)[0]


def unread(folder):
    """The groups in flight of all processes, as {(step, slot): bytes}."""
    found = {}
    for path in sorted(folder.glob("buffer_*.npz")):
        saved = dict(np.load(path))
        for k, pair in enumerate(zip(saved["steps_K"].tolist(), saved["slots_K"].tolist(), strict=True)):
            assert pair not in found
            found[pair] = b"".join(saved[name][k].tobytes() for name in sorted(saved))
    return found


def until(workdir, step, to):
    """A copy of a run as it was when the checkpoint before `step` was the newest."""
    shutil.copytree(workdir, to)
    (to / "summary.json").unlink()
    for path in (to / "checkpoints").iterdir():
        if path.name > f"step_{step:08d}":
            shutil.rmtree(path)
    return to


EIGHT = dict(devices=8, mesh=(2, 2, 2))
TWICE_FOUR = dict(devices=4, num_processes=2, mesh=(2, 2, 2))


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_other_meshes(machine, tmp_path):
    """From 1 device to 8 to 1, and from 8 devices to 2 processes with 4 each and back."""
    machine.run(tmp_path / "one", devices=1)
    expected = [json.loads(line) for line in records(tmp_path / "one")]
    route = [("one", 4, "eight", EIGHT), ("eight", 8, "one_again", dict(devices=1)),
             ("eight", 4, "twice_four", TWICE_FOUR), ("twice_four", 8, "eight_again", EIGHT)]  # fmt: skip
    for source, step, name, how in route:
        workdir = until(tmp_path / source, step, tmp_path / name)
        before = unread(workdir / "checkpoints" / f"step_{step:08d}")
        machine.run(workdir, **how)
        assert before == unread(tmp_path / source / "checkpoints" / f"step_{step:08d}") and len(before) > 4
        for found, wanted in zip(map(json.loads, records(workdir)), expected, strict=True):
            assert (found["reward"], found["lag_histogram"]) == (wanted["reward"], wanted["lag_histogram"])
            # Sums in another order; Adam magnifies where a gradient is nearly 0.
            assert found["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
            assert found["param_norm"] == pytest.approx(wanted["param_norm"], rel=1e-5)
        ours, theirs = killing.final_arrays(workdir), killing.final_arrays(tmp_path / "one")
        for leaf in (leaf for leaf in theirs if ".params" in leaf):
            np.testing.assert_allclose(np.frombuffer(ours[leaf], np.float32), np.frombuffer(theirs[leaf], np.float32),
                                       atol=2e-3, err_msg=leaf)  # fmt: skip
    # The buffer travels exactly: what was sampled before the move is what is read after it.
    assert len(list((tmp_path / "twice_four" / "checkpoints" / "step_00000008").glob("buffer_*.npz"))) == 2


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_both_go_on_exactly(machine, tmp_path):
    """200 steps on 2 x 4 devices; killed once each way: the other ends within 30 s and says why; all is exact."""
    overrides = {"steps": 200, "checkpoint.save_every": 20, "checkpoint.keep": 2}
    machine.run(tmp_path / "whole", **TWICE_FOUR, **overrides)
    for victim, at in ((1, 50), (0, 110)):
        processes = machine.start(tmp_path / "killed", **TWICE_FOUR, **overrides)
        while killing.num_records(tmp_path / "killed") < at:
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
        assert code == 75 and "the same command goes on" in errors, errors
    assert killing.num_records(tmp_path / "preempted") < 40
    machine.run(tmp_path / "preempted", **TWICE_FOUR, **{"steps": 40})
    assert killing.ending(tmp_path / "preempted") == killing.ending(tmp_path / "whole")
