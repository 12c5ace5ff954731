"""Nothing is lost: a killed run ends as if it never was, a damaged checkpoint is refused."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess

import chex
import jax
import numpy as np
import pytest

from experiments.train import __main__ as experiment
from experiments.train.measure import resume
from staleness_grpo.config.build import build_run
from staleness_grpo.errors import FlagError
from staleness_grpo.runtime.preemption import Preemption
from staleness_grpo.runtime.records import read_jsonl
from staleness_grpo.staleness.ring_buffer import RingBuffer
from staleness_grpo.training import checkpoint
from staleness_grpo.training.loop import train
from tests.helpers import killing
from tests.helpers.tiny import tiny_config

FLIGHT = {
    "steps": 8,
    "lag.max_lag": 3,
    "lag.schedule": "uniform",
    "eval_every": 4,
    "checkpoint.save_every": 2,
}
SCHEDULES = {
    "constant": {"lag.schedule": "constant"},
    "cyclic": {"lag.schedule": "cyclic"},
    "uniform": {"lag.schedule": "uniform"},
    "minibatches": {"updates_per_batch": 2, "correction.name": "decoupled_ppo"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never broken off, with checkpoints before steps 4 and 6 and at its end."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.main(tiny_config(**FLIGHT, **{"checkpoint.keep": 3}), workdir)
    return workdir


@pytest.fixture(scope="module")
def built():
    """A run as it was built. Restoring into it is to be refused."""
    return build_run(tiny_config(**FLIGHT))


@pytest.fixture
def unfinished(finished, tmp_path):
    """A copy of the finished run that has not got to its summary, and lacks the last checkpoint."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000008")
    return tmp_path / "run"


def test_killed_then_preempted_ends_as_if_it_never_was(finished, tmp_path):
    process = killing.start(tmp_path, FLIGHT)
    assert killing.kill_after(process, tmp_path, records=3, sleep=0.01)
    assert killing.end(process)[0] == -signal.SIGKILL
    process = killing.start(tmp_path, FLIGHT)
    records = killing.num_records(tmp_path)
    killing.kill_after(process, tmp_path, records + 1, 0, signal.SIGTERM)
    code, errors = killing.end(process)
    assert code == 75 and "run the same command to go on" in errors
    experiment.main(tiny_config(**FLIGHT), tmp_path)
    assert killing.ending(tmp_path) == killing.ending(finished)
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, finished)
    ]
    for summary in summaries:
        del summary["median_time_step"]
    assert summaries[0] == summaries[1]


def test_ctrl_c_is_a_request_and_twice_an_interruption(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert not preemption.requested(0)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err.startswith("SIGINT: the run ends after this learner step")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_many_kills_at_random_moments(schedule, tmp_path):
    """13 kills for each schedule, 52 in all; run with -s for the counts."""
    overrides = {
        "steps": 60,
        "lag.max_lag": 4,
        "eval_every": 7,
        "checkpoint.save_every": 6,
        **SCHEDULES[schedule],
    }
    code, errors = killing.end(killing.start(tmp_path / "whole", overrides))
    assert code == 0, errors
    counts = killing.kill_often(tmp_path / "killed", overrides, kills=13, seed=len(schedule))
    print(schedule, counts)
    assert counts["kills"] == 13 and counts["twice_in_a_row"] >= 3
    assert killing.ending(tmp_path / "killed") == killing.ending(tmp_path / "whole")


def test_a_run_left_between_any_two_steps_goes_on_exactly(finished, unfinished):
    records = read_jsonl(unfinished / "metrics.jsonl")
    experiment.main(tiny_config(**FLIGHT), unfinished)
    assert killing.ending(unfinished) == killing.ending(finished)
    # The checkpoint comes before step 6: the records after it were put aside, and made again.
    assert read_jsonl(unfinished / "metrics.interrupted-1.jsonl") == records[6:]


def damage_a_byte(folder):
    path = max(folder.glob("arrays/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(**changes):
    def edit(folder):
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


DAMAGES = {
    "is damaged": damage_a_byte,
    "buffer_0.npz is missing": lambda folder: (folder / "buffer_0.npz").unlink(),
    "buffer_0.npz is damaged": lambda folder: os.truncate(folder / "buffer_0.npz", 100),
    "manifest.json cannot be read": lambda folder: os.truncate(folder / "manifest.json", 100),
    "config_hash is 0, but this run has": edit_manifest(config_hash="0"),
    "format is 0, but this run has": edit_manifest(format=0),
    "is absent, but this run needs": edit_manifest(arrays={}),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_an_unusable_checkpoint_is_refused_with_the_step_to_fall_back_to(fault, built, unfinished):
    DAMAGES[fault](unfinished / "checkpoints" / "step_00000006")
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    checkpoints = checkpoint.Checkpoints(unfinished / "checkpoints", tiny_config(**FLIGHT))
    with pytest.raises(FlagError) as error:
        resume(built, checkpoints, unfinished)
    assert str(error.value).startswith(
        f"--workdir={unfinished}: the checkpoint of step 6 cannot be used: "
    )
    assert fault in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("add --config.checkpoint.fallback to go on from step 4")
    assert before == {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    shutil.rmtree(unfinished / "checkpoints" / "step_00000004")
    with pytest.raises(FlagError, match=r"from step 0 \(no usable checkpoint\)$"):
        resume(built, checkpoints, unfinished)


def test_falls_back_when_told_to(finished, unfinished):
    damage_a_byte(unfinished / "checkpoints" / "step_00000006")
    experiment.main(tiny_config(**FLIGHT, **{"checkpoint.fallback": True}), unfinished)
    assert killing.ending(unfinished) == killing.ending(finished)
    assert (
        unfinished / "checkpoints" / "step_00000006.refused"
    ).exists()  # kept, for whoever looks for the cause


def test_records_that_a_checkpoint_counts_on_must_be_there(unfinished):
    (unfinished / "metrics.jsonl").write_text('{"step": 0}\n')
    checkpoints = checkpoint.Checkpoints(unfinished / "checkpoints", tiny_config(**FLIGHT))
    with pytest.raises(
        FlagError, match="metrics.jsonl has 1 records, the checkpoint comes after 6"
    ):
        resume(build_run(tiny_config(**FLIGHT)), checkpoints, unfinished)


@pytest.mark.parametrize("line", [None, b"[1]", b'{"step": 2,}', b'{"step": 5}'])
def test_records_before_a_checkpoint_are_those_of_its_steps(unfinished, line):
    path = unfinished / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    lines[2:3] = [] if line is None else [line]  # the file has lines after the checkpoint's, too
    lines.append(lines[-1])
    path.write_bytes(b"\n".join([*lines, b""]))
    checkpoints = checkpoint.Checkpoints(unfinished / "checkpoints", tiny_config(**FLIGHT))
    with pytest.raises(FlagError, match="line 3 of metrics.jsonl is not the record of step 2: res"):
        resume(build_run(tiny_config(**FLIGHT)), checkpoints, unfinished)


def test_the_newest_are_kept_and_partial_ones_go(built, tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, tiny_config(**FLIGHT))
    for step in (0, 2, 4):
        checkpoints.save(dataclasses.replace(built.snapshot(), step=step))
    checkpoints.wait()
    (tmp_path / "step_00000006.partial").mkdir()
    assert sorted(checkpoints.steps()) == [2, 4]
    manifest = json.loads((tmp_path / "step_00000004" / "manifest.json").read_text())
    assert manifest["versions"]["jax"] == jax.__version__ and "commit" in manifest
    run = build_run(tiny_config(**FLIGHT))
    checkpoint.Checkpoints(tmp_path, tiny_config(**FLIGHT)).restore(run, ValueError)
    assert run.step == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000004"]
    chex.assert_trees_all_equal(jax.device_get(run.state), jax.device_get(built.state))


def test_a_buffer_of_lag_64_takes_its_contents_and_little_more(built, tmp_path):
    buffer = RingBuffer(max_lag=64, num_groups=4)
    rollout = next(built.generator.generate(built.state.params, 0, np.zeros(4, int), np.arange(4)))[
        2
    ].result()
    for step in range(1, 65):
        buffer.push(np.full(4, step), np.arange(4), 0, rollout)
    run = dataclasses.replace(built, buffer=buffer)
    checkpoints = checkpoint.Checkpoints(tmp_path, tiny_config(**FLIGHT))
    checkpoints.save(run.snapshot())
    checkpoints.wait()
    step_slot_and_version = 3 * 8 * 4
    contents = 64 * (sum(leaf.nbytes for leaf in jax.tree.leaves(rollout)) + step_slot_and_version)
    assert (tmp_path / "step_00000000" / "buffer_0.npz").stat().st_size <= 1.1 * contents


def test_versions_in_flight_are_one_array_for_each_parameter(finished, built):
    """Orbax takes its time for every array, so a save does not grow with the lag."""
    manifest = json.loads(
        (finished / "checkpoints" / "step_00000004" / "manifest.json").read_text()
    )
    kept = {
        name: shape
        for name, (shape, _) in manifest["arrays"].items()
        if name.startswith("['drift_versions']")
    }
    assert len(kept) == len(jax.tree.leaves(built.state.params))
    assert len(manifest["drift_versions"]) > 1
    assert all(shape[0] == len(manifest["drift_versions"]) for shape in kept.values())


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str):
    """A file system of its own, or a skipped test where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs a small file system to fill, and mounting one needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_costs_one_checkpoint_and_the_run_goes_on(finished, tmp_path, capfd):
    settings = tiny_config(**FLIGHT)
    with small_disk(tmp_path / "checkpoints", "2m"):
        checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", settings)
        filler = tmp_path / "checkpoints" / "filler"
        for record in train(build_run(settings), checkpoints):
            checkpoints.wait()
            if record["step"] == 2:
                assert checkpoints.steps() == [2]
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
            if record["step"] == 4:
                assert checkpoints.steps() == [2]
                reason = "not saved (No space left on device): step 2 is kept; the run goes on"
                assert f"checkpoint of step 4 {reason}" in capfd.readouterr().err
                filler.unlink()
        assert sorted(checkpoints.steps()) == [6, 8]
        assert killing.final_arrays(tmp_path) == killing.final_arrays(finished)


def test_other_faults_of_a_save_are_raised(built, tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, tiny_config(**FLIGHT))
    monkeypatch.setattr(np, "savez", lambda *args, **kwargs: 1 / 0)
    checkpoints.save(built.snapshot())
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_a_run_of_several_processes(built, tmp_path, monkeypatch):
    """The others wait at a barrier for this process, so it may not train on without them."""

    def full_disk(partial, snapshot):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = checkpoint.Checkpoints(tmp_path, tiny_config(**FLIGHT))
    monkeypatch.setattr(checkpoints, "_write_files", full_disk)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save(built.snapshot())


def test_a_collapsed_run_is_not_saved_at_its_end(tmp_path):
    config = tiny_config(**{"steps": 20, "optimizer.learning_rate": 1e38, "optimizer.name": "sgd"})
    config.checkpoint.save_every = 100
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    *_, last = train(build_run(config), checkpoints)
    checkpoints.wait()
    assert last["collapsed"] and checkpoints.steps() == []
