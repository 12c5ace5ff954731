"""Judges responses in worker processes, so that the device does not wait for slow verifiers.

A verifier may raise an error, hang, end its process, or return NaN. This does not stop the run. The
failure is reported on stderr, up to a limit, and the sample is marked and gets reward 0. The same
holds for a task that judges arrays and returns a reward that is not finite.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pebble

from staleness_grpo.errors import FieldError, require_at_least, require_positive
from staleness_grpo.tasks.components import WeightedSum

# (response, reference) -> reward. Worker processes must be able to import a verifier by name.
Verifier = Callable[[str, Any], float]
OUTCOMES = JUDGED, FAILED, TIMED_OUT = range(3)
MAX_REPORTS = 10  # largest number of different failures that are reported on stderr
LARGEST_REWARD = float(np.finfo(np.float32).max)
# Seconds between SIGTERM and SIGKILL when pebble ends a worker. Workers here ignore SIGTERM.
pebble.CONSTS.term_timeout = 0.1
START_SECONDS = 20.0  # for a worker process to start; an import on a slow disk takes seconds


def check_rewards(fields: Mapping[str, Any]) -> None:
    """Raises FieldError if a field of `config.rewards` has a value that cannot be used."""
    require_at_least(fields, {"num_workers": 1})
    require_positive(fields, ("time_limit",))


class Judged(NamedTuple):
    """Holds the rewards of B samples."""

    rewards_B: np.ndarray  # float32
    outcome_B: np.ndarray  # int8, of OUTCOMES
    # float32, [B, O] with one entry for each component; None if the verifier is no WeightedSum. A
    # sample that was not judged has zeros.
    components_BxO: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Judging:
    """Holds B samples that worker processes judge, some of which may not be judged yet.

    Attributes:
      futures: one future for each sample. Its result is the result of `_judge`.
      time_limit: the time limit of one sample, in seconds.
      report: is called with a description of each failure. The description continues the words "a
        reward function".
      num_components: the number of the reward's components; 0 if the verifier is no WeightedSum.
    """

    futures: Sequence[concurrent.futures.Future]
    time_limit: float
    report: Callable[[str], None]
    num_components: int = 0

    def done(self) -> bool:
        """Returns whether all samples are judged, so that `result` returns at once."""
        return all(future.done() for future in self.futures)

    def result(self) -> Judged:
        """Waits for the samples, and returns their rewards."""
        judged = [self._judged(future) for future in self.futures]
        components_BxO = None
        if self.num_components:
            components_BxO = np.zeros((len(judged), self.num_components), np.float32)
            for row, (_, _, components) in zip(components_BxO, judged, strict=True):
                row[: len(components)] = components
        return Judged(
            np.array([reward for reward, _, _ in judged], np.float32),
            np.array([outcome for _, outcome, _ in judged], np.int8),
            components_BxO,
        )

    def _judged(self, future: concurrent.futures.Future) -> tuple[float, int, Sequence[float]]:
        """Waits for a sample, reports its failure, and returns (reward, outcome, components).

        The components are empty if the sample failed.
        """
        try:
            reward, components, failure = future.result()
        except concurrent.futures.TimeoutError:
            self.report(f"took longer than {self.time_limit:g} s")
            return 0.0, TIMED_OUT, ()
        except Exception as error:  # ProcessExpired, or CancelledError after `close`
            reward, components, failure = 0.0, (), f"failed: {type(error).__name__}: {error}"
        if failure is None:
            return reward, JUDGED, components
        self.report(failure)
        return 0.0, FAILED, ()


_verify: Verifier  # set once in each worker process


def _start_worker(verify: Verifier, has_started: Any) -> None:
    """Prepares this worker process. It ignores signals and warms the verifier up.

    Args:
      verify: the verifier.
      has_started: a semaphore that is released once at the start.
    """
    global _verify
    has_started.release()
    # Schedulers and terminals send these signals to all processes of a job. Only the main process
    # should react. A worker that a signal ended would lose its sample's reward.
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)
    _verify = verify
    try:
        getattr(verify, "warm_up", lambda: None)()
    except Exception as error:  # samples that fail for this reason are reported one by one
        line = f"a reward function's warm-up failed: {type(error).__name__}: {error}"
        print(line, file=sys.stderr, flush=True)


def _judge(response: str, reference: Any) -> tuple[float, Sequence[float], str | None]:
    """Returns (reward, components, None), or (0, (), a description of the failure).

    Only the verifiers of a WeightedSum have components. The error or the reward of a verifier may
    be impossible to pickle. So only floats and a string are returned.
    """
    components: Sequence[float] = ()
    try:
        if isinstance(_verify, WeightedSum):
            components = _verify.components(response, reference)
            reward = _verify.total(components)
        else:
            reward = float(_verify(response, reference))
    except BaseException as error:  # includes SystemExit, which would end the worker
        return 0.0, (), "failed: " + "".join(traceback.format_exception_only(error))
    for value in (reward, *components):
        if not abs(value) <= LARGEST_REWARD:  # also for NaN
            return 0.0, (), f"gave {value}"
    return reward, components, None


class FailureReports:
    """Prints each different failure of a reward once, up to MAX_REPORTS of them.

    A broken verifier fails on every sample, and would fill the screen.
    """

    def __init__(self) -> None:
        self._reported: set[str] = set()

    def __call__(self, failure: str) -> None:
        """Reports a failure. Its description continues the words "a reward function"."""
        failure = " ".join(failure.split())
        if failure not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(failure)
            line = f"a reward function {failure}; the sample has reward 0, counted in metrics.jsonl"
            print(line, file=sys.stderr, flush=True)


def finite_rewards(
    rewards: np.ndarray, shape: tuple[int, ...], report: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rewards_NxG float32, outcome_NxG int8) of a task that judges arrays.

    A reward that is not a finite float32 becomes 0, with the outcome FAILED.

    Args:
      rewards: the result of the task's `rewards`.
      shape: (N, G).
      report: is called with a description of the first such reward.

    Raises:
      FieldError: the task returned another shape.
    """
    rewards = np.asarray(rewards, np.float32)
    if rewards.shape != shape:
        hint = f"its rewards have shape {rewards.shape}: return one for each response, {shape}"
        raise FieldError("task", hint)
    is_finite = np.isfinite(rewards)
    if not is_finite.all():
        report(f"gave {rewards[~is_finite][0]}")
    outcome = np.where(is_finite, JUDGED, FAILED).astype(np.int8)
    return np.where(is_finite, rewards, np.float32(0)), outcome


class RewardPool:
    """Runs one verifier in a pool of worker processes, with a time limit for each sample.

    Args:
      verify: a Verifier that can be pickled, so not a lambda. If it has a method `warm_up`, each
        process calls the method at its start. The time of imports in `warm_up` is not part of any
        sample's time.
      num_workers: number of processes, which are started at the first `submit`.
      time_limit: the time limit of one sample in seconds. The process of a slower sample is ended
        and replaced.

    Raises:
      FieldError: `verify` cannot be pickled.
    """

    def __init__(self, verify: Verifier, num_workers: int, time_limit: float):
        try:
            pickle.dumps(verify)  # fails once here instead of at every sample
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            hint = "define it at the top of a module, where worker processes can import it"
            raise FieldError("verify", f"{verify} cannot be pickled ({error}): {hint}") from error
        self._time_limit, self._num_workers = time_limit, num_workers
        # The names of the reward's components, if the verifier is a WeightedSum.
        self.component_names = verify.component_names if isinstance(verify, WeightedSum) else ()
        # Forked processes can deadlock, because JAX has threads.
        context = multiprocessing.get_context("spawn")
        self._has_started = context.Semaphore(0)
        self._pool = pebble.ProcessPool(
            max_workers=num_workers,
            context=context,
            initializer=_start_worker,
            initargs=(verify, self._has_started),
        )
        self._is_in_use = False
        self._report = FailureReports()

    def submit(self, responses_B: Sequence[str], references_B: Sequence[Any]) -> Judging:
        """Starts to judge B responses, each with the reference of its problem."""
        self._is_in_use = True
        futures = [
            self._pool.schedule(_judge, args=sample, timeout=self._time_limit)
            for sample in zip(responses_B, references_B, strict=True)
        ]
        return Judging(futures, self._time_limit, self._report, len(self.component_names))

    def close(self) -> None:
        """Ends the worker processes. Samples that are not judged yet are dropped.

        Processes that are just starting are waited for, up to START_SECONDS. They would fail to
        find what they share with this process, and print a traceback.
        """
        for _ in range(self._num_workers if self._is_in_use else 0):
            if not self._has_started.acquire(timeout=START_SECONDS):
                break
        self._is_in_use = False
        self._pool.stop()
        self._pool.join()
