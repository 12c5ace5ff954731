"""Writes the lags of a simulation as a trace, which the schedule `trace` replays."""

from collections.abc import Iterator
from typing import Any

from staleness_grpo.pipeline.simulation import Result


def trace_records(result: Result) -> Iterator[dict[str, Any]]:
    """Yields a record for each group that a learner step learned from.

    A record has the fields of `staleness_grpo.staleness.trace`. `behavior_version` is that of the
    group's oldest token, and `time` is when the learner step began. A replay does not read the
    field `spans`: for each response, the version and number of its tokens, oldest first.
    """
    for step in result.steps:
        for slot, group in enumerate(step.groups):
            yield {
                "step": step.step,
                "slot": slot,
                "behavior_version": group.version,
                "time": step.start,
                "spans": [response.spans for response in group.responses],
            }
