"""Describes what a simulated pipeline runs on, and refuses descriptions that cannot be run."""

import dataclasses
import math

from staleness_grpo.errors import require, require_at_least, require_choice, require_positive
from staleness_grpo.pipeline.lengths import Lengths

# What new weights do to the responses that an engine is generating:
#   continue  the engine goes on with them under the new weights
#   finish    each goes on under the weights that it began with
#   drain     the engine begins no response, and loads the weights when it has none left
IN_FLIGHT = CONTINUE, FINISH, DRAIN = "continue", "finish", "drain"
# What stands still while weights are published: nothing, the learner, or learner and engines.
BLOCKED = NOTHING, LEARNER, ALL = "nothing", "learner", "all"


@dataclasses.dataclass(frozen=True)
class Engines:
    """Describes the generation engines, which are all equal.

    A token of each of b busy slots takes (1 + slowdown (b - 1)) / tokens_per_second seconds.

    Raises:
      FieldError: there is no engine or slot, or a number is negative, zero or not finite.
    """

    count: int  # number of engines
    slots: int  # responses that an engine generates at the same time
    tokens_per_second: float  # rate of a response that is alone on its engine
    slowdown: float  # share by which each further busy slot lengthens the time of a token

    def __post_init__(self):
        fields = dataclasses.asdict(self)
        require_at_least(fields, {"count": 1, "slots": 1})
        require_positive(fields, ("tokens_per_second",))
        require_at_least(fields, {"slowdown": 0})
        for name in ("tokens_per_second", "slowdown"):
            require(math.isfinite(fields[name]), name, "give a finite number", fields[name])

    def rate(self, num_busy: int) -> float:
        """Returns the tokens per second of each of `num_busy` responses on one engine."""
        return self.tokens_per_second / (1 + self.slowdown * (num_busy - 1))


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Describes engines, responses and learner of a pipeline. All times are in seconds.

    Raises:
      FieldError: there is no group or response, a time is negative or not finite, or a choice
        is unknown.
    """

    engines: Engines
    lengths: Lengths
    num_groups: int  # N, groups of a learner step
    group_size: int  # G, responses of a group
    reward_seconds: float  # from a group's last token to its rewards
    step_seconds: float  # time of an optimizer update
    publish_seconds: float  # time in which the engines get new weights
    publish_blocks: str  # what stands still meanwhile, one of BLOCKED
    in_flight: str  # one of IN_FLIGHT

    def __post_init__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        require_at_least(fields, {"num_groups": 1, "group_size": 1})
        for name in ("reward_seconds", "step_seconds", "publish_seconds"):
            require_at_least(fields, {name: 0})
            require(math.isfinite(fields[name]), name, "give a finite number", fields[name])
        require_choice(fields, "publish_blocks", BLOCKED)
        require_choice(fields, "in_flight", IN_FLIGHT)
