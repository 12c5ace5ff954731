"""Judges rewards in worker processes: the device does not wait, and no sample stops a run.

A verifier may raise, hang, or end its process. Such a sample is reported on stderr, gets reward 0,
and is marked.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pebble

from staleness_grpo.errors import FieldError, require_at_least, require_positive

# (response, reference) -> reward. Another process must be able to import it by name.
Verifier = Callable[[str, Any], float]
OUTCOMES = JUDGED, FAILED, TIMED_OUT = range(3)
MAX_REPORTS = 10  # lines on stderr
LARGEST_REWARD = float(np.finfo(np.float32).max)
# Seconds that pebble waits between SIGTERM, which the workers ignore here, and SIGKILL.
pebble.CONSTS.term_timeout = 0.1


def check_rewards(fields: Mapping[str, Any]) -> None:
    """Raises FieldError for what `config.rewards` cannot hold."""
    require_at_least(fields, {"num_workers": 1})
    require_positive(fields, ("time_limit",))


@dataclasses.dataclass(frozen=True)
class Judging:
    """The rewards of B samples, some of which may not be judged yet.

    Attributes:
      futures: one for each sample, with what `_judge` returns.
      time_limit: seconds that a sample may take.
      report: is told of each failure, in words that follow "a reward function".
    """

    futures: Sequence[concurrent.futures.Future]
    time_limit: float
    report: Callable[[str], None]

    def done(self) -> bool:
        """Returns whether `result` would return at once."""
        return all(future.done() for future in self.futures)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for the samples, and returns (rewards_B float32, outcome_B int8, of OUTCOMES)."""
        judged = [self._judged(future) for future in self.futures]
        rewards_B = np.array([reward for reward, _ in judged], np.float32)
        outcome_B = np.array([outcome for _, outcome in judged], np.int8)
        return rewards_B, outcome_B

    def _judged(self, future: concurrent.futures.Future) -> tuple[float, int]:
        """Waits for a sample, reports its failure, and returns (reward, outcome)."""
        try:
            reward, failure = future.result()
        except concurrent.futures.TimeoutError:
            self.report(f"took longer than {self.time_limit:g} s")
            return 0.0, TIMED_OUT
        except Exception as error:  # ProcessExpired if the process died
            reward, failure = 0.0, f"failed: {type(error).__name__}: {error}"
        if failure is None:
            return reward, JUDGED
        self.report(failure)
        return 0.0, FAILED


_verify: Verifier  # of this worker process, which has the same one all its life


def _start_worker(verify: Verifier) -> None:
    """Makes this process a worker of a pool."""
    global _verify
    # Schedulers and terminals send these signals to all processes of a job, but only the run should
    # answer them. A worker that died of one would change a reward.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _verify = verify
    try:
        getattr(verify, "warm_up", lambda: None)()
    except Exception as error:  # a sample that needs what failed here is reported by itself
        line = f"a reward function's warm-up failed: {type(error).__name__}: {error}"
        print(line, file=sys.stderr, flush=True)


def _judge(response: str, reference: Any) -> tuple[float, str | None]:
    """Returns (reward, None), or (0, the failure in words).

    Both are plain values, because not everything that a verifier raises or returns can be pickled.
    """
    try:
        reward = float(_verify(response, reference))
    except BaseException as error:  # SystemExit too, which would end the worker or the run
        return 0.0, "failed: " + "".join(traceback.format_exception_only(error))
    if abs(reward) <= LARGEST_REWARD:  # False for NaN
        return reward, None
    return 0.0, f"gave {reward}"


class RewardPool:
    """A pool of worker processes that run one verifier, with a time limit for each sample.

    Args:
      verify: a Verifier. It is pickled, so it cannot be a lambda. If it has a method `warm_up`,
        each process calls it at its start. Imports there do not count as a sample's time.
      num_workers: processes, started at the first `submit`.
      time_limit: seconds that one sample may take. After that its process is ended and replaced.

    Raises:
      FieldError: naming `verify`, which cannot be pickled.
    """

    def __init__(self, verify: Verifier, num_workers: int, time_limit: float):
        try:
            pickle.dumps(verify)  # refused once here, and not with every sample
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            hint = "define it at the top of a module, where worker processes can import it"
            raise FieldError("verify", f"{verify} cannot be pickled ({error}): {hint}") from error
        self._time_limit = time_limit
        self._pool = pebble.ProcessPool(
            max_workers=num_workers,
            # A fork of a process with JAX's threads can deadlock.
            context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(verify,),
        )
        self._reported: set[str] = set()

    def submit(self, responses_B: Sequence[str], references_B: Sequence[Any]) -> Judging:
        """Starts judging B responses, each with the reference of its problem."""
        futures = [
            self._pool.schedule(_judge, args=pair, timeout=self._time_limit)
            for pair in zip(responses_B, references_B, strict=True)
        ]
        return Judging(futures, self._time_limit, self._report)

    def close(self) -> None:
        """Ends the workers, and drops the samples that they have not judged."""
        self._pool.stop()
        self._pool.join()

    def _report(self, failure: str) -> None:
        """Prints a failure once, because a broken verifier fails on every sample alike."""
        failure = " ".join(failure.split())
        if failure not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(failure)
            line = f"a reward function {failure}; scored 0, and counted in metrics.jsonl"
            print(line, file=sys.stderr, flush=True)
