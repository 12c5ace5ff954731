"""Compiles the programs of a run in a second thread, while the run's warm start trains.

Runs of one process with the same config share their functions, and JAX keeps what it has compiled
for a function. So the first two learner steps of another run, from parameters of zeros, leave
nothing for the run itself to compile. Nothing else of that run is kept.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.policy.configured import make_policy
from staleness_grpo.runtime.cores import usable_cores
from staleness_grpo.tasks.base import Task, TextTask
from staleness_grpo.training.loop import train
from staleness_grpo.training.run import assemble_run
from staleness_grpo.training.warm_start import cache_path


class _Ended(Exception):
    """Ends a rehearsal between two parts of a step."""


def pays(config: ConfigDict, task: Task) -> bool:
    """Says whether a run has a warm start to make, on one device, with a core to spare.

    A task that judges text is not rehearsed, because its workers would be started twice.
    """
    is_alone = jax.process_count() == 1 and math.prod(config.mesh.values()) == 1
    if not (config.warm_start.steps and is_alone and len(usable_cores()) > 1):
        return False
    if config.policy.checkpoint is not None or isinstance(task, TextTask):
        return False
    return not cache_path(make_policy(config.policy, task.vocab_size), config).exists()


@contextlib.contextmanager
def rehearsed(config: ConfigDict, task: Task) -> Iterator[None]:
    """Rehearses a run during the body of the `with` statement, and waits for the rest after it.

    If the body raises an error, the rehearsal ends after the part of a step that it is in. An error
    of the rehearsal is not reported, since the run itself meets it too. Nothing is rehearsed where
    it does not pay.
    """
    if not pays(config, task):
        yield
        return
    must_end = threading.Event()

    def watch(part: str, arrays: Any) -> None:
        del part, arrays
        if must_end.is_set():
            raise _Ended

    def rehearse() -> None:
        policy = make_policy(config.policy, task.vocab_size)
        abstract = jax.eval_shape(policy.init, jax.random.key(0))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        with (
            contextlib.suppress(Exception),
            contextlib.closing(assemble_run(config, task, params=zeros)) as run,
        ):
            run.watch_with(watch)
            next(train(run))  # the record of the first step comes after the second step

    thread = threading.Thread(target=rehearse, name="rehearsal", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        must_end.set()
        raise
    finally:
        thread.join()
