"""Rewards in real worker processes: whatever a verifier does, the other samples are judged."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from staleness_grpo.errors import FieldError
from staleness_grpo.training.rewards import FAILED, JUDGED, TIMED_OUT, RewardPool

ROOT = pathlib.Path(__file__).parents[2]


class TwoWords(Exception):
    """An exception that cannot be unpickled, because that calls it with one argument."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


class Unreadable(float):
    """A number that cannot be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


def badly_behaved(response: str, reference: str) -> float:
    """Judges a response, which can break it in every way."""
    if response == "raise":
        raise ValueError("cannot read\nthis")
    if response == "raise two words":
        raise TwoWords("hello", "world")
    if response == "exit":
        sys.exit(3)
    if response == "time out":
        raise TimeoutError("of its own")
    if response == "unreadable":
        return Unreadable(1.0)
    if response == "hang":
        while True:
            time.sleep(1)
    if response == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if response == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    if response == "nan":
        return float("nan")
    if response == "too large for float32":
        return 1e300
    return float(response == reference)


def test_a_broken_sample_is_scored_zero_and_reported_and_the_rest_is_judged(capfd):
    pool = RewardPool(badly_behaved, num_workers=2, time_limit=1.0)
    try:
        responses = ["a", "raise", "b", "hang", "a", "die", "raise", "nan", "terminate", "a"]
        responses += [
            "raise two words",
            "exit",
            "time out",
            "unreadable",
            "a",
            "too large for float32",
        ]
        judging = pool.submit(responses, ["a"] * 8 + ["terminate"] + ["a"] * 7)
        rewards, outcomes, components = judging.result()
        assert judging.done() and components is None
        np.testing.assert_array_equal(
            rewards, np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0], np.float32)
        )
        kinds = [JUDGED, FAILED, JUDGED, TIMED_OUT, JUDGED, FAILED, FAILED, FAILED, JUDGED, JUDGED]
        kinds += [FAILED, FAILED, FAILED, JUDGED, JUDGED, FAILED]
        np.testing.assert_array_equal(outcomes, kinds)
        assert rewards.dtype == np.float32 and outcomes.dtype == np.int8
        again, _, _ = pool.submit(["a", "b"], ["a", "a"]).result()  # the pool is whole again
        np.testing.assert_array_equal(again, [1, 0])
    finally:
        pool.close()
    reports = capfd.readouterr().err.splitlines()
    # Once, and on one line.
    assert sum("ValueError: cannot read this" in line for line in reports) == 1
    for part in (
        "longer than 1 s",
        "ProcessExpired",
        "gave nan",
        "gave 1e+300",
        "TwoWords: hello world",
        "SystemExit: 3",
        "of its own",
    ):
        assert sum(part in line for line in reports) == 1


@dataclasses.dataclass
class SlowToStart:
    """A verifier that starts as slowly as one that imports a large library."""

    warm: bool = False

    def __call__(self, response: str, reference: str) -> float:
        return float(self.warm)

    def warm_up(self):
        time.sleep(1.5)
        self.warm = True


def test_the_warm_up_of_a_process_does_not_count_as_a_samples_time():
    pool = RewardPool(SlowToStart(), num_workers=1, time_limit=1.0)
    try:
        rewards, outcomes, _ = pool.submit(["a", "b"], ["a", "b"]).result()
        np.testing.assert_array_equal(rewards, [1, 1])
        np.testing.assert_array_equal(outcomes, [JUDGED, JUDGED])
    finally:
        pool.close()


@dataclasses.dataclass
class Announced:
    """A verifier that leaves a file in a folder when a process has received it."""

    folder: pathlib.Path

    def __call__(self, response: str, reference: str) -> float:
        return 1.0

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.folder / str(os.getpid())).touch()


def test_closing_waits_for_processes_that_are_just_starting(tmp_path, monkeypatch, capfd):
    """They would not find what they share with this process, and print a traceback."""
    pool = RewardPool(Announced(tmp_path), num_workers=2, time_limit=5.0)
    pool.submit(["a"], ["a"])
    stop, started = pool._pool.stop, []

    def counted_stop():
        started.append(len(list(tmp_path.iterdir())))
        stop()

    monkeypatch.setattr(pool._pool, "stop", counted_stop)
    pool.close()
    assert started == [2] and capfd.readouterr().err == ""
    never_used = RewardPool(Announced(tmp_path), num_workers=2, time_limit=5.0)
    start = time.perf_counter()
    never_used.close()
    assert time.perf_counter() - start < 5


def test_a_verifier_that_cannot_be_sent_to_a_worker_is_refused_at_once():
    with pytest.raises(
        FieldError,
        match="^verify: .*lambda.*cannot be pickled.*: define it at the top of a module",
    ):
        RewardPool(lambda response, reference: 1.0, num_workers=1, time_limit=1.0)


def test_workers_end_with_a_killed_run():
    command = [sys.executable, "-m", "tests.programs.reward_pool_owner"]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers = []
    try:
        assert owner.stdout is not None
        workers = [int(pid) for pid in owner.stdout.readline().split()]
        assert workers and all(map(runs, workers))
        owner.kill()
        owner.wait(timeout=10)
        deadline = time.monotonic() + 20
        while any(map(runs, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(runs, workers))
    finally:
        owner.kill()
        owner.communicate()
        for pid in filter(runs, workers):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Returns whether there is such a process and it is not a zombie."""
    status = pathlib.Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
