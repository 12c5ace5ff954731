"""Errors of workers reach the process of the command with their text."""

import jax
import numpy as np
import pytest

from staleness_grpo.sweeps.workers import worker_pool


def traced():
    jax.jit(np.asarray)(1.0)


def looked_up():
    return {}["key"]


def test_errors_that_cannot_be_sent_are_told_and_others_are_sent():
    with worker_pool(1) as pool:
        assert pool.submit(max, 2, 3).result(timeout=120) == 3
        with pytest.raises(RuntimeError, match="(?s)in a worker:.*TracerArrayConversionError"):
            pool.submit(traced).result(timeout=120)
        with pytest.raises(KeyError, match="key"):
            pool.submit(looked_up).result(timeout=120)
