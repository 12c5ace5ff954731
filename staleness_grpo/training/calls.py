"""Cuts the groups of a run into calls, which the generator samples one after the other."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from staleness_grpo.training.run import Run


class Call(NamedTuple):
    """Names the groups that the generator samples at once: neighboring slots of one step."""

    step: int
    slots: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """Returns the step of each group."""
        return np.full(len(self.slots), self.step)


def list_calls(config: ConfigDict) -> list[Call]:
    """Returns the calls of a run in their order."""
    at_once = config.sampler.batch_prompts
    at_once = config.num_prompts if at_once is None else at_once
    return [
        Call(step, np.arange(start, start + at_once))
        for step in range(config.steps)
        for start in range(0, config.num_prompts, at_once)
    ]


def num_answered(run: Run) -> int:
    """Counts the calls whose groups a run has read or holds. They are the first calls.

    Raises:
      ValueError: the unread groups are not those of the next calls.
    """
    calls = list_calls(run.config)
    at_once, num_groups = len(calls[0].slots), run.config.num_prompts
    steps_W, slots_W, *_ = run.buffer.unread()
    num_groups_done = run.step * num_groups + len(steps_W)
    is_next = np.array_equal(
        steps_W * num_groups + slots_W, np.arange(run.step * num_groups, num_groups_done)
    )
    if not is_next or num_groups_done % at_once:
        raise ValueError(
            f"the unread groups before step {run.step} are not those of the next calls"
        )
    return num_groups_done // at_once
