"""Turns SIGTERM and Ctrl-C into a request to stop after a learner step, and to save the run."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: running the same command again continues the run
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Says that a part of a run stopped before its end, because a signal asked for it."""


class Preemption:
    """A context manager that catches SIGNALS, and restores the former signal handlers at its end.

    With several processes, JAX catches SIGTERM instead. Then all processes stop at the same step.
    """

    def __init__(self) -> None:
        self._stop_requested = False
        self._former_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._former_handlers = {
                number: signal.signal(number, self._handle_signal) for number in SIGNALS
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self._stop_requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True
        name = signal.Signals(signal_number).name
        notice = f"{name}: the run ends after this learner step; Ctrl-C stops it at once\n"
        os.write(2, notice.encode())  # unlike `print`, this is safe in a signal handler

    def requested_before_the_first_step(self) -> bool:
        """Returns whether to stop at once. Several processes only stop between learner steps."""
        return self._stop_requested

    def requested(self, step: int) -> bool:
        """Returns whether to stop before this learner step. All processes get the same answer."""
        if jax.process_count() == 1:
            return self._stop_requested
        return multihost_utils.reached_preemption_sync_point(step)
