"""Rewards judged in worker processes: the device does not wait for them, and no sample can stop a run.

A verifier may raise, hang, or take its process down with it. Such a sample is reported on stderr, scored 0 and marked.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pebble

from staleness_grpo.tasks import TaskError

Verifier = Callable[[str, Any], float]  # (response, reference) -> reward; importable by name in another process
OUTCOMES = JUDGED, FAILED, TIMED_OUT = range(3)
MOST_REPORTS = 10  # lines on stderr
LARGEST = float(np.finfo(np.float32).max)
pebble.CONSTS.term_timeout = 0.1  # seconds between SIGTERM, which its workers ignore here, and SIGKILL


@dataclasses.dataclass(frozen=True)
class Judging:
    """The rewards of some samples, on their way."""

    futures: list[concurrent.futures.Future]
    time_limit: float
    report: Callable[[str], None]

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return all(future.done() for future in self.futures)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(rewards, float32; outcomes, int8, of OUTCOMES), in the order of the samples."""
        pairs = [self._one(future) for future in self.futures]
        return np.array([reward for reward, _ in pairs], np.float32), np.array([kind for _, kind in pairs], np.int8)

    def _one(self, future) -> tuple[float, int]:
        try:
            reward, problem = future.result()
        except concurrent.futures.TimeoutError:
            self.report(f"took longer than {self.time_limit:g} s")
            return 0.0, TIMED_OUT
        except Exception as error:  # ProcessExpired where the process died
            reward, problem = 0.0, f"failed: {type(error).__name__}: {error}"
        if problem is None:
            return reward, JUDGED
        self.report(problem)
        return 0.0, FAILED


_verify: Verifier  # of a worker process, which has one all its life


def _start_worker(verify: Verifier) -> None:
    """Makes this process a worker of a pool."""
    global _verify
    # Schedulers and terminals send these to all processes of a job. They are the run's to answer: a worker that died of
    # one would change a reward.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _verify = verify
    try:
        getattr(verify, "warm_up", lambda: None)()
    except Exception as error:  # the samples that meet it will tell
        print(f"a reward function's warm-up failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _judge(response: str, reference: Any) -> tuple[float, str | None]:
    """The reward, or 0 and what is wrong: plain values, since not everything that is raised or returned can be sent."""
    try:
        reward = float(_verify(response, reference))
    except BaseException as error:  # SystemExit among them, which would end the process, or the run
        return 0.0, "failed: " + "".join(traceback.format_exception_only(error))
    return (reward, None) if abs(reward) <= LARGEST else (0.0, f"gave {reward}")  # NaN is not


class RewardPool:
    """Worker processes that run one verifier, each sample within a time limit.

    Args:
      verify: a Verifier; it is pickled, so no lambda. If it has a method `warm_up`, each process calls that as it
        starts: imports there do not count against the first sample's time.
      num_workers: processes, started at the first `submit`.
      time_limit: seconds that one sample may take; its process is ended then, and another started.

    Raises:
      TaskError: for a verifier that cannot be pickled.
    """

    def __init__(self, verify: Verifier, num_workers: int, time_limit: float):
        try:
            pickle.dumps(verify)  # here, and not once for every sample
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            mend = "define it at the top of a module, where worker processes can import it"
            raise TaskError("verify", f"{verify} cannot be pickled ({error}): {mend}") from error
        self._time_limit = time_limit
        self._pool = pebble.ProcessPool(
            max_workers=num_workers,
            context=multiprocessing.get_context("spawn"),  # a fork of a process with JAX's threads can deadlock
            initializer=_start_worker,
            initargs=(verify,),
        )
        self._reported: set[str] = set()

    def submit(self, responses_B: Sequence[str], references_B: Sequence[Any]) -> Judging:
        """Starts judging B responses, each beside what its problem says of the answer."""
        futures = [
            self._pool.schedule(_judge, args=pair, timeout=self._time_limit)
            for pair in zip(responses_B, references_B, strict=True)
        ]
        return Judging(futures, self._time_limit, self._report)

    def close(self) -> None:
        """Ends the workers; what they have not judged is dropped."""
        self._pool.stop()
        self._pool.join()

    def _report(self, what: str) -> None:
        """One line for each kind of failure: a broken verifier fails on every sample alike."""
        what = " ".join(what.split())
        if what not in self._reported and len(self._reported) < MOST_REPORTS:
            self._reported.add(what)
            print(f"a reward function {what}; scored 0, and counted in metrics.jsonl", file=sys.stderr, flush=True)
