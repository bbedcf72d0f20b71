"""How fast the fan-out appends: as fast as is good for the log while nobody else writes, and out of others' way else.

While the log takes a batch, whoever else appends waits for it: 2 to 4 ms, and more for a large one. And what is
recorded is read, applied and told of. So beside others batches are small, and after each there is a rest of some times
as long as it took: a server that is slow, or far away, is left alone for longer. That others write is told by the log
itself, whichever registry they write with: between two batches of the fan-out stand messages that are not its own. No
clock here: callers say what time it is.
"""

from typing import Final

ALONE_MESSAGES: Final = 200
"""In a batch, while nobody else writes."""
BESIDE_OTHERS_MESSAGES: Final = 50
"""In a batch, while others do: few more take the log longer, fewer do not take it less."""
RESTS_TIMES: Final = 5.0
"""Beside others: how many times as long as a batch took there is a rest from it."""
MAX_REST_SECONDS: Final = 0.25
"""However slow the log is, the fan-out goes on."""
OTHERS_SECONDS: Final = 2.0
"""For so long after somebody else wrote, they are expected to write again."""


class Pace:
    """Of one deletion's fan-out, beginning at `now` behind sequence `last` of the log. At most `per_second` messages.

    All times are seconds of one clock that never goes back.
    """

    def __init__(self, per_second: int, *, last: int, now: float) -> None:
        self._per_second = per_second
        self._last = last
        self._others_until = now + OTHERS_SECONDS  # nobody knows yet
        self._next_at = now

    def messages(self, now: float) -> int:
        """How many belong in the next batch."""
        return BESIDE_OTHERS_MESSAGES if now < self._others_until else ALONE_MESSAGES

    def rest(self, messages: int, *, last: int, took: float, now: float) -> float:
        """For how many seconds to append nothing, after a batch that took so long and now ends at sequence `last`."""
        if last - self._last > messages:
            self._others_until = now + OTHERS_SECONDS
        self._last = max(last, self._last)
        # What was missed while the log was slow is not caught up with.
        self._next_at = max(self._next_at, now - took) + messages / self._per_second
        rest = self._next_at - now
        if now < self._others_until:
            rest = max(rest, min(took * RESTS_TIMES, MAX_REST_SECONDS))
        return max(rest, 0.0)
