"""Takes SIGTERM and Ctrl-C as a request to save the run between two learner steps and to stop."""

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Listens for the signals while the context lasts, and then puts the former listeners back.

    Several processes listen through JAX, by which they agree on the step at which they stop.
    """

    def __init__(self) -> None:
        self._asked = False
        self._former_listeners: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            self._former_listeners = {
                number: signal.signal(number, self._ask) for number in SIGNALS
            }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, listener in self._former_listeners.items():
            signal.signal(number, listener)

    def _ask(self, signal_number: int, frame: FrameType | None) -> None:
        if self._asked and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        name = signal.Signals(signal_number).name
        notice = f"{name}: the run is saved after this learner step; Ctrl-C ends it at once\n"
        os.write(2, notice.encode())  # allowed in a signal handler, as `print` is not

    def requested(self, step: int) -> bool:
        """Says whether to stop before this learner step; all processes get the same answer."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)
