"""Simulates one generation engine, whose rate per response falls with its busy slots."""

import bisect
import heapq
import math
import operator
from collections.abc import Callable

import simpy

from staleness_grpo.pipeline.cluster import CONTINUE, Engines
from staleness_grpo.pipeline.groups import Response

# Tokens that the clock may differ from a whole number by rounding.
ROUNDING = 1e-6


class Engine:
    """Generates responses in slots that all advance at the same rate.

    A token clock advances by the tokens that each busy slot generates. A response that starts at
    clock c ends at clock c + length, whatever the rate does in between. So a change of the rate
    costs one new timeout, and not one for each slot.

    Attributes:
      num_busy: responses in slots now.
      busy_seconds: the integral of `num_busy` over time, until the last event of this engine.
      tokens: generated tokens of all slots, until the last event; not a whole number.
    """

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        settings: Engines,
        in_flight: str,
        on_end: Callable[[list[Response]], None],
    ):
        self._env, self._settings, self._number = env, settings, number
        self._in_flight, self._on_end = in_flight, on_end
        self._version = 0
        self._changes: list[tuple[float, int]] = []  # (token clock, the new version)
        # Ends of responses by token clock. Ties end in the order of their starts.
        self._ends: list[tuple[float, int, Response]] = []
        self._num_started = 0
        self._free = list(range(settings.slots))  # a heap, so that the lowest slot is taken first
        self._clock, self._last_time = 0.0, env.now
        self._is_paused = False
        self._ticket = 0  # a timeout with another ticket is out of date
        self.num_busy, self.busy_seconds, self.tokens = 0, 0.0, 0.0

    @property
    def num_free(self) -> int:
        """Returns the number of free slots."""
        return len(self._free)

    def advance(self) -> None:
        """Brings clock and integrals to the present."""
        elapsed = self._env.now - self._last_time
        self._last_time = self._env.now
        if elapsed and self.num_busy:
            self.busy_seconds += elapsed * self.num_busy
            if not self._is_paused:
                tokens = elapsed * self._settings.rate(self.num_busy)
                self._clock += tokens
                self.tokens += tokens * self.num_busy

    def start(self, response: Response) -> None:
        """Puts a response into a free slot. Call `reschedule` after the last start."""
        self.advance()
        response.engine, response.slot = self._number, heapq.heappop(self._free)
        response.version, response.start = self._version, self._env.now
        response.start_clock = self._clock
        self.num_busy += 1
        self._num_started += 1
        end = self._clock + response.length
        heapq.heappush(self._ends, (end, self._num_started, response))

    def cancel(self, response: Response) -> None:
        """Ends a response before it is complete. Call `reschedule` after the last one."""
        self.advance()
        begun = math.floor(self._clock - response.start_clock + ROUNDING)
        self._release(response, min(begun, response.length))

    def load(self, version: int) -> None:
        """Gives the engine new weights. Responses in flight go on under them or not."""
        self.advance()
        self._version = version
        if self._in_flight == CONTINUE:
            if not self.num_busy:
                self._changes.clear()  # nobody will ask for them
            self._changes.append((self._clock, version))

    def pause(self, is_paused: bool) -> None:
        """Stops the tokens, or lets them go on."""
        self.advance()
        self._is_paused = is_paused
        self.reschedule()

    def reschedule(self) -> None:
        """Plans the next end of a response."""
        self._ticket += 1
        while self._ends and self._ends[0][2].end is not None:  # it was cancelled
            heapq.heappop(self._ends)
        if self.num_busy and not self._is_paused:
            left = max(self._ends[0][0] - self._clock, 0.0)
            delay = left / self._settings.rate(self.num_busy)
            timeout = self._env.timeout(delay, value=self._ticket)
            assert timeout.callbacks is not None  # it has not happened yet
            timeout.callbacks.append(self._wake)

    def _wake(self, event: simpy.Event) -> None:
        """Ends the responses that are complete."""
        if event.value != self._ticket:
            return
        self.advance()
        self._clock = self._ends[0][0]  # it differs by rounding alone
        ended = []
        while self._ends and self._ends[0][0] <= self._clock + ROUNDING:
            response = heapq.heappop(self._ends)[2]
            if response.end is None:
                self._release(response, response.length)
                ended.append(response)
        self.reschedule()
        self._on_end(ended)

    def _release(self, response: Response, tokens: int) -> None:
        response.end, response.tokens = self._env.now, tokens
        response.spans = self._spans(response)
        heapq.heappush(self._free, response.slot)
        self.num_busy -= 1

    def _spans(self, response: Response) -> tuple[tuple[int, int], ...]:
        """Returns (version, tokens) of an ended response, oldest first.

        A token belongs to the weights under which it was begun. The first token is begun at the
        start, so it belongs to `Response.version`.
        """
        spans, done, version = [], 0, response.version
        first = bisect.bisect_left(
            self._changes, response.start_clock - ROUNDING, key=operator.itemgetter(0)
        )
        for clock, next_version in self._changes[first:]:
            if next_version > response.version:
                begun = math.floor(clock - response.start_clock + ROUNDING) + 1
                begun = min(begun, response.tokens)
                if begun > done:
                    spans.append((version, begun - done))
                    done = begun
                version = next_version
        if response.tokens > done:
            spans.append((version, response.tokens - done))
        return tuple(spans)
