"""Token buckets in front of what anybody may do: one for all, and one for each source.

Whoever asks much empties its own bucket first. The last part of the bucket for all is kept for sources that asked
little lately, so that those who ask much do not take everybody else's share. Memory is bounded: the source that was
silent longest is forgotten first, and with it at most what it had used up.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct

MAX_SOURCES: Final = 50_000
RESERVED_SHARE: Final = 0.1
"""Of the bucket for all: kept for sources whose own bucket is nearly full."""
NEARLY_FULL_SHARE: Final = 0.9


class Rate(Struct, frozen=True):
    """A bucket holds `burst` at most, and gains `per_second`."""

    per_second: float
    burst: int


class _Bucket:
    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at

    def refill(self, rate: Rate, now: float) -> None:
        self.tokens = min(float(rate.burst), self.tokens + max(0.0, now - self.at) * rate.per_second)
        self.at = now


class Limits:
    """Both buckets. `clock` gives monotonic seconds. A rate of None is no limit."""

    def __init__(
        self, everyone: Rate | None, source: Rate | None, *, clock: Callable[[], float], max_sources: int = MAX_SOURCES
    ) -> None:
        self._everyone_rate = everyone
        self._source_rate = source
        self._clock = clock
        self._max_sources = max_sources
        self._everyone = _Bucket(0.0 if everyone is None else float(everyone.burst), clock())
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, source: str) -> float:
        """Take one token of each bucket: 0.0. Or take none: the seconds after which it is worth asking again."""
        now = self._clock()
        bucket = self._of(source, now)
        if bucket is not None and self._source_rate is not None and bucket.tokens < 1.0:
            return (1.0 - bucket.tokens) / self._source_rate.per_second
        rate = self._everyone_rate
        if rate is not None:
            self._everyone.refill(rate, now)
            modest = (
                bucket is None
                or self._source_rate is None
                or bucket.tokens >= self._source_rate.burst * NEARLY_FULL_SHARE
            )
            needed = 1.0 if modest else 1.0 + rate.burst * RESERVED_SHARE
            if self._everyone.tokens < needed:
                return (needed - self._everyone.tokens) / rate.per_second
            self._everyone.tokens -= 1.0
        if bucket is not None:
            bucket.tokens -= 1.0
        return 0.0

    @property
    def sources(self) -> int:
        """How many sources are remembered."""
        return len(self._sources)

    def _of(self, source: str, now: float) -> _Bucket | None:
        rate = self._source_rate
        if rate is None:
            return None
        bucket = self._sources.get(source)
        if bucket is None:
            bucket = self._sources[source] = _Bucket(float(rate.burst), now)
            if len(self._sources) > self._max_sources:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(source)
            bucket.refill(rate, now)
        return bucket


def rate(text: str) -> Rate | None:
    """`<per second>/<burst>`, such as `2/100`, or `off`. Raises `ValueError` for anything else."""
    if text.strip().lower() == "off":
        return None
    per_second, _, burst = text.partition("/")
    found = Rate(float(per_second), int(burst))
    if not (found.per_second > 0 and found.burst > 0):
        message = f"{text!r} is no rate: <per second>/<burst>, both above 0, or off"
        raise ValueError(message)
    return found
