"""The feed, as the read API sees it: whether it has everything that the log has, and who has applied how much of it."""

import asyncio
import bisect
import math
from collections import Counter
from datetime import timedelta
from typing import Final

from msgspec import UNSET, Struct, UnsetType
from nats.aio.client import Client

from grantbook import receipts
from grantbook.admin import Delivery, SubscriberDelivery, SubscriberStatus
from grantbook.positions import Position
from grantbook.receipts import Receipt
from grantbook.sdk import clocks
from grantbook.sdk.log import LogReader, Raw, StreamState, Unavailable, place_in_log
from grantbook.sdk.revocations import doubt_of, heard_seconds_ago
from grantbook.sdk.subscription import AllReceived, read_receipts

PROOF_SECONDS: Final = 0.5
"""All open streams of a process share a proof that is no older."""
DOUBT_SECONDS: Final = 0.1
"""The same of a doubt, since it was answered: it may be none a moment later, while much is revoked at once."""
RECEIPTS_SECONDS: Final = 0.5
"""However many ask, receipts are read again only so long after they were read: ten thousand take some 0.2 s of it."""
MAX_PLACES: Final = 64
"""Places in the log that are looked up in the feed for one answer. Of the others it is told less than they have."""


class NotInFeed(Exception):
    """No revocation up to that place is in the feed: there was none, or it is older than the feed keeps."""


class Proof(Struct, frozen=True):
    """What the feed said of itself. Times are of `clocks.now`, in seconds."""

    asked_at: float
    heard_at: float
    """When the feed had last heard from the log."""
    feed: str
    """Which feed it is: its identity, empty where it did not say."""
    sequence: int
    """Of the feed's last revocation; 0 where it has none."""
    doubt: str | None
    """Why it may lack something that the log has, in words, or None."""


class FeedHead:
    """Asks the feed how complete it is, for all who want to know at once."""

    def __init__(self, feed: LogReader) -> None:
        self._feed = feed
        self._asking = asyncio.Lock()
        self._known = Proof(-math.inf, -math.inf, "", 0, "not asked yet")
        self._answered_at = -math.inf

    async def proof(self) -> Proof:
        """A proof, at most `PROOF_SECONDS` old, or a doubt, at most `DOUBT_SECONDS` old. Does not raise."""
        async with self._asking:
            now = clocks.now()
            # A doubt is of when it was answered: where that takes long, all who waited for it would ask anew, in turn.
            proven, told = now - self._known.asked_at, now - self._answered_at
            if proven > PROOF_SECONDS if self._known.doubt is None else told > DOUBT_SECONDS:
                self._known = await self._ask(now)
                self._answered_at = clocks.now()
        return self._known

    async def _ask(self, asked_at: float) -> Proof:
        try:
            state = await self._feed.state()
        except Unavailable as error:
            return Proof(asked_at, -math.inf, "", 0, str(error))
        return Proof(asked_at, asked_at - heard_seconds_ago(state), state.identity, state.last, doubt_of(state))


class Receipts:
    """The subscribers' receipts, read once for all who ask within a moment."""

    def __init__(self, connection: Client) -> None:
        self._connection = connection
        self._asking = asyncio.Lock()
        self._read_at = -math.inf
        self._known = AllReceived([], truncated=False)
        self._trouble: str | None = None
        self._new: Counter[str] = Counter()
        """Of each caller: let in since it was last read."""

    async def all(self) -> AllReceived:
        """The receipts, as they were at most `RECEIPTS_SECONDS` ago, and what reading takes. Raises `Unavailable`."""
        async with self._asking:
            if clocks.now() - self._read_at > RECEIPTS_SECONDS:
                self._new.clear()
                try:
                    self._known, self._trouble = await read_receipts(self._connection), None
                except Unavailable as error:
                    self._trouble = str(error)  # for all who waited, too: each would wait as long again, in turn
                self._read_at = clocks.now()
        if self._trouble is not None:
            raise Unavailable(self._trouble)
        return self._known

    async def lets_in(self, caller: str, most: int) -> bool:
        """Whether this caller's token may hand in one more, which then counts. Raises `Unavailable`."""
        received = (await self.all()).received
        if sum(each.receipt.by == caller for each in received) + self._new[caller] >= most:
            return False
        self._new[caller] += 1
        return True


def place_claimed(receipt: Receipt, log: StreamState) -> int:
    """Up to where in this log a subscriber over HTTP says it is: 0 where that is another log, or lies ahead of it."""
    return receipt.log_sequence if receipt.log == log.identity and receipt.log_sequence <= log.last else 0


async def subscribers(kept: Receipts, log: LogReader, feed: LogReader) -> list[SubscriberStatus]:
    """Every subscriber that has not ended in good order, by name. Raises `Unavailable`."""
    of_log, state, read = await asyncio.gather(log.state(), feed.state(), kept.all())
    over_http = {place_claimed(each.receipt, of_log) for each in read.received if each.receipt.feed is None}
    places = await _places_in_feed(feed, state, sorted(over_http))
    statuses = []
    for each in read.received:
        receipt = each.receipt
        if receipt.feed is None:
            applied = _known_of(places, place_claimed(receipt, of_log))
        else:
            ours = receipt.feed == state.identity and receipt.feed_sequence <= state.last
            applied = receipt.feed_sequence if ours else 0
        silent = max(0.0, (state.now - each.stored_at).total_seconds())
        statuses.append(
            SubscriberStatus(
                name=receipt.name,
                instance=receipt.instance,
                state="gone" if silent > receipts.GONE_SECONDS else receipt.state,
                lag_events=max(0, state.last - max(applied, state.first - 1)),
                silent_seconds=round(silent, 3),
            )
        )
    return statuses


async def _places_in_feed(feed: LogReader, state: StreamState, log_sequences: list[int]) -> list[tuple[int, int]]:
    """For places in the log, in order, how much of the feed stands up to there; for some of them, where they are many.

    The lowest are always among them, and the end.
    """
    step = max(1, math.ceil(len(log_sequences) / MAX_PLACES))
    wanted = list(dict.fromkeys([*log_sequences[::step], *log_sequences[-1:]]))
    return [(each, (await at_or_before(feed, state, each))[0] if each else 0) for each in wanted]


def _known_of(places: list[tuple[int, int]], log_sequence: int) -> int:
    """How much of the feed stands up to a place in the log, at least."""
    index = bisect.bisect_right(places, (log_sequence, math.inf))
    return places[index - 1][1] if index else 0


async def delivery(kept: Receipts, log: LogReader, feed: LogReader, asked: Position) -> Delivery:
    """Which subscribers have applied everything that was revoked up to a place in the log.

    Raises `NotInFeed` and `Unavailable`. `asked` is a position of this log.
    """
    of_log, state, read = await asyncio.gather(log.state(), feed.state(), kept.all())
    place, revocation = await at_or_before(feed, state, asked.sequence)
    if revocation is None:
        raise NotInFeed
    log_sequence = place_in_log(revocation)
    original = await log.at_on_leader(log_sequence)
    revoked_at = revocation.stored_at if original is None else original.stored_at
    told = []
    for each in read.received:
        receipt = each.receipt
        has = (
            place_claimed(receipt, of_log) >= log_sequence
            if receipt.feed is None
            else receipt.feed == state.identity and place <= receipt.feed_sequence <= state.last
        )
        applied_at = receipt.applied_at(log_sequence, each.stored_at) if has else None
        silent = max(0.0, (state.now - each.stored_at).total_seconds())
        told.append(
            SubscriberDelivery(
                name=receipt.name,
                instance=receipt.instance,
                state="gone" if silent > receipts.GONE_SECONDS else receipt.state,
                delivered=has,
                delivered_at=UNSET if applied_at is None else applied_at,
                took_ms=UNSET if applied_at is None else _milliseconds(applied_at - revoked_at),
                silent_seconds=round(silent, 3),
            )
        )
    waiting = [each for each in told if not each.delivered]
    timed = [each for each in told if not isinstance(each.took_ms, UnsetType)]
    slowest = max(timed, key=lambda each: each.took_ms or 0.0, default=None)
    return Delivery(
        position=str(asked),
        revocation=str(Position("log", asked.identity, log_sequence)),
        type=revocation.recorded().type,
        recorded_at=revoked_at,
        complete=not waiting and not read.truncated,
        truncated=True if read.truncated else UNSET,
        delivered=len(told) - len(waiting),
        waiting=sum(each.state != "gone" for each in waiting),
        gone=sum(each.state == "gone" for each in waiting),
        slowest=UNSET if slowest is None else slowest,
        # Those that an admin must look at first.
        subscribers=[*waiting, *(each for each in told if each.delivered)],
    )


def _milliseconds(length: timedelta) -> float:
    # Receipts tell whole milliseconds, and nothing is applied before it is stored.
    return max(0.0, round(length.total_seconds() * 1_000, 1))


async def at_or_before(feed: LogReader, state: StreamState, log_sequence: int) -> tuple[int, Raw | None]:
    """The last message of the feed that stands in the log at a place or before it, found in a few reads.

    Its sequence in the feed, or one less than the feed's first where there is none.
    """
    low, high = max(1, state.first), state.last + 1  # an empty stream says that it begins at 0
    found: Raw | None = None
    while low < high:
        middle = (low + high) // 2
        message = await feed.at_on_leader(middle)
        if message is None or place_in_log(message) <= log_sequence:
            low, found = middle + 1, message or found
        else:
            high = middle
    return low - 1, found
