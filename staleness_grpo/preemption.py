"""SIGTERM and Ctrl-C as a request: the run is saved between two learner steps and ends with a code to requeue on."""

import os
import signal

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption:
    """Listens for the signals as long as the context lasts; the listeners before are put back."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        if jax.process_count() == 1:  # several processes have a listener of JAX's own, by which they agree on a step
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *exception):
        if jax.process_count() == 1:
            for number, listener in self._before.items():
                signal.signal(number, listener)

    def _ask(self, signal_number, frame):
        if self._asked and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        name = signal.Signals(signal_number).name
        os.write(2, f"{name}: the run is saved after this learner step; Ctrl-C ends it at once\n".encode())  # reentrant

    def requested(self, step: int) -> bool:
        """Whether to stop before this learner step; all processes get the same answer."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
