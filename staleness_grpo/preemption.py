"""SIGTERM as a request: the run is saved between two learner steps and ends with a code to requeue on."""

import signal

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


class Preemption:
    """Listens for SIGTERM as long as the context lasts; the one before is put back."""

    def __init__(self):
        self._asked = False

    def __enter__(self):
        if jax.process_count() == 1:  # several processes have a listener of JAX's own, by which they agree on a step
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, signal_number, frame):
        self._asked = True

    def requested(self, step: int) -> bool:
        """Whether to stop before this learner step; all processes get the same answer."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
