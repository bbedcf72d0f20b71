"""Token buckets in front of what anybody may do: one for all, and one for each source.

Whoever asks much empties its own bucket first. The last part of the bucket for all is kept for sources out of networks
that asked little lately. So those who ask much do not take everybody else's share, also when they have many addresses.
Memory is bounded: what was silent longest is forgotten first, and with it at most what it had used up.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from door.sources import Source

MAX_SOURCES: Final = 50_000
"""Sources that are remembered, and as many networks."""
RESERVED_SHARE: Final = 0.1
"""Of the bucket for all: kept for sources whose network's bucket is nearly full."""
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


class _Buckets:
    """One bucket a name, full when it is new."""

    def __init__(self, rate: Rate, most: int) -> None:
        self.rate = rate
        self._most = most
        self._by_name: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_name)

    def refilled(self, name: str, now: float) -> _Bucket:
        """The bucket of a name, as it is now."""
        bucket = self._by_name.get(name)
        if bucket is None:
            bucket = self._by_name[name] = _Bucket(float(self.rate.burst), now)
            if len(self._by_name) > self._most:
                self._by_name.popitem(last=False)
            return bucket
        self._by_name.move_to_end(name)
        gained = max(0.0, now - bucket.at) * self.rate.per_second
        bucket.tokens, bucket.at = min(float(self.rate.burst), bucket.tokens + gained), now
        return bucket


class Limits:
    """All of the buckets. `clock` gives monotonic seconds. A rate of None is no limit."""

    def __init__(
        self, everyone: Rate | None, source: Rate | None, *, clock: Callable[[], float], max_sources: int = MAX_SOURCES
    ) -> None:
        self._clock = clock
        self._everyone = None if everyone is None else _Buckets(everyone, 1)
        self._sources = None if source is None else _Buckets(source, max_sources)
        self._networks = None if source is None else _Buckets(source, max_sources)

    def take(self, source: Source, tokens: int = 1) -> float:
        """Take so many tokens of each bucket: 0.0. Or take none: the seconds after which it is worth asking again."""
        now = self._clock()
        own = None
        modest = True
        if self._sources is not None and self._networks is not None:
            own = self._sources.refilled(source.address, now)
            network = self._networks.refilled(source.network, now)
            modest = network.tokens >= self._networks.rate.burst * NEARLY_FULL_SHARE
            network.tokens = max(0.0, network.tokens - tokens)  # what is refused was asked for, too
            if own.tokens < tokens:
                return (tokens - own.tokens) / self._sources.rate.per_second
        if self._everyone is not None:
            rate, everyone = self._everyone.rate, self._everyone.refilled("", now)
            needed = tokens if modest else tokens + rate.burst * RESERVED_SHARE
            if everyone.tokens < needed:
                return (needed - everyone.tokens) / rate.per_second
            everyone.tokens -= tokens
        if own is not None:
            own.tokens -= tokens
        return 0.0

    @property
    def remembered(self) -> int:
        """How many sources and networks are remembered."""
        return sum(len(each) for each in (self._sources, self._networks) if each is not None)


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


def shared(whole: Rate | None, among: int, *, largest: int) -> Rate | None:
    """The part of a rate that is each one's, where so many let in side by side, and do not know of each other.

    Raises `ValueError` where what one request may take at most, `largest`, does not fit into each part.
    """
    if whole is None or among == 1:
        return whole
    if whole.burst < among * largest:
        message = f"a burst of {whole.burst} is too little for {among} processes: it must be {among * largest} or more"
        raise ValueError(message)
    return Rate(whole.per_second / among, whole.burst // among)
