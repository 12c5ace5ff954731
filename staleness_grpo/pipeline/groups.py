"""Defines responses and groups, which a simulated pipeline moves from engines to learner."""

import dataclasses


@dataclasses.dataclass(slots=True, eq=False)
class Response:
    """Holds one response: where and when it was generated, and under which weights.

    Times are seconds on the simulation's clock.
    """

    group: "Group"
    length: int  # tokens, when it is complete
    engine: int = -1  # number of the engine; -1: it waits for a slot
    slot: int = -1  # place on the engine, below `Engines.slots`
    version: int = -1  # weights that its first token was begun under
    start: float = -1.0
    end: float | None = None  # None while it is generated; also set by a cancellation
    start_clock: float = 0.0  # the engine's token clock at the start
    tokens: int = 0  # tokens that were generated, once it has ended
    # (version, tokens): how many tokens were begun under which weights, oldest first
    spans: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(slots=True, eq=False)
class Group:
    """Holds the G responses to one prompt, and what became of them."""

    number: int  # groups are numbered in the order in which they start
    version: int  # weights of the engines when the group started, the oldest of its tokens
    start: float
    responses: list[Response] = dataclasses.field(default_factory=list)
    num_unfinished: int = 0  # responses that are not complete
    ready: float | None = None  # when its rewards were there
    left: float | None = None  # when the learner took it, or when it was discarded
    step: int | None = None  # the learner step that took it; None if none did
    slot: int | None = None  # its place in that step's batch

    @property
    def is_discarded(self) -> bool:
        """Returns whether the group was discarded."""
        return self.left is not None and self.step is None

    @property
    def tokens(self) -> int:
        """Returns the generated tokens of the responses that have ended."""
        return sum(response.tokens for response in self.responses)

    @property
    def lag(self) -> int:
        """Returns the lag in optimizer updates, by the oldest token. The group must be trained."""
        assert self.step is not None
        return self.step - self.version
