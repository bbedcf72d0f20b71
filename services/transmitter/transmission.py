"""All deliveries of this process, as the bucket of event streams has them: begun, changed and ended by what it says.

Every change goes to the bucket first, whoever makes it, and comes from there to everybody who delivers. One
transmitter is enough; a second beside it loses nothing, but the two take SETs from each other's hands: receivers hear
of things twice, and no order is kept.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import structlog
from nats.aio.client import Client

from grantbook import subjects
from grantbook.sdk.log import Raw, Unavailable
from grantbook.sdk.tasks import end
from transmitter import durable
from transmitter.bucket import MAX_TRIES, Bucket, Contended, Entry, stream_in
from transmitter.delivery import MAX_POLLED, Delivering, Polled, Polling, Tools, delivering, what_it_is
from transmitter.durable import Durable
from transmitter.streams import POLL, Stream, key, without_verification

MAX_STREAMS: Final = 256
"""In one installation. Each has a durable consumer of the feed."""
MAX_STREAMS_OF_RECEIVER: Final = 8
MAX_POLLS: Final = 256
"""Open at once in one process."""
MAX_POLLS_OF_RECEIVER: Final = 2 * MAX_STREAMS_OF_RECEIVER
"""Open at once for one receiver: one for each stream, and one that the receiver has lost sight of."""
POLL_SECONDS: Final = 25.0
"""How long a poll waits for something to give out; shorter than what most proxies and clients wait."""
APPLIED_SECONDS: Final = 2.0
"""A stream that was just made is at work within it."""
LOOK_SECONDS: Final = 1.0
"""A poll that waits notices within it that its stream was paused, enabled or deleted."""
_NEXT_SECONDS: Final = 1.0

_log = structlog.get_logger("transmitter")


class NoSuchStream(Exception):
    """The receiver has no stream of this id."""


class TooManyPolls(Exception):
    """As many polls wait as may."""


class NotPolled(Exception):
    """The stream is delivered by push."""


class TooManyStreams(Exception):
    """The receiver, or all of them together, have as many streams as they may."""


class NotAtWork(Exception):
    """The stream is not at work yet. Safe to try again."""


class _AtWork:
    """A delivery and its task."""

    def __init__(self, delivery: Delivering, task: asyncio.Task[None]) -> None:
        self.delivery = delivery
        self.task = task


class Transmission:
    """Delivers for as long as `run` does. `tools` are made with what it does itself: see `verified`."""

    def __init__(self, connection: Client, bucket: Bucket, make_tools: Callable[["Transmission"], Tools]) -> None:
        self.caught_up: Final = asyncio.Event()
        """Set when every stream of the bucket is known."""
        self.closing: Final = asyncio.Event()
        self.streams: Final[dict[str, Stream]] = {}
        """Every event stream, by its key in the bucket."""
        self.trouble: str | None = None
        self._connection = connection
        self._bucket = bucket
        self._tools = make_tools(self)
        self._at_work: dict[str, _AtWork] = {}
        self._polls: Counter[str] = Counter()
        """Open ones of each receiver."""
        self._applied = asyncio.Event()
        """Set when something of the bucket was taken over."""
        self._to_remove: set[str] = set()

    @property
    def failing(self) -> int:
        """How many receivers do not get what they should have, at the moment."""
        return sum(1 for each in self._at_work.values() if each.delivery.trouble is not None)

    async def run(self) -> None:
        """Follow the bucket. Ends only by being cancelled, and all deliveries with it."""
        try:
            every = [subjects.bucket_subjects(subjects.SSF)]
            async with self._bucket.reader.follow(0, every, last_per_subject=True) as follower:
                while True:
                    for raw in await follower.next(_NEXT_SECONDS):
                        await self._apply(raw)
                        self._applied.set()
                    self.trouble = follower.trouble
                    if follower.pending == 0:
                        self.caught_up.set()
                    await self._remove_consumers()
        finally:
            await end(*(each.task for each in self._at_work.values()))

    async def verified(self, stream: Stream, verification_id: str) -> None:
        """A verification event was delivered. Where that cannot be stored, it is delivered again."""
        with contextlib.suppress(Contended, Unavailable, NoSuchStream):
            await self.change(
                stream.owner, stream.stream_id, lambda found: without_verification(found, verification_id)
            )

    async def find(self, owner: str, stream_id: str) -> Entry:
        """A receiver's stream. Raises `NoSuchStream`, also for another receiver's, and `Unavailable`."""
        entry = await self._bucket.get(key(owner, stream_id))
        if entry is None or entry.stream.stream_id != stream_id:
            raise NoSuchStream
        return entry

    async def change(self, owner: str, stream_id: str, decide: Callable[[Stream], Stream]) -> Stream:
        """A receiver's stream after a change. Raises as `find` does, what `decide` raises, and `Contended`."""
        for _ in range(MAX_TRIES):
            entry = await self.find(owner, stream_id)
            changed = decide(entry.stream)
            if changed == entry.stream:
                return changed
            with contextlib.suppress(Contended):
                await self._bucket.put(changed, revision=entry.revision)
                return changed
        raise Contended(stream_id)

    async def create(self, stream: Stream) -> None:
        """Store a new stream. Raises `TooManyStreams`, `Contended`, `Unavailable`."""
        if len(self.streams) >= MAX_STREAMS or len(await self.streams_of(stream.owner)) >= MAX_STREAMS_OF_RECEIVER:
            raise TooManyStreams
        await self._bucket.put(stream, revision=0)

    async def streams_of(self, owner: str) -> list[Stream]:
        """The streams of a receiver, oldest first. Raises `Unavailable`."""
        return await self._bucket.streams_of(owner)

    async def delete(self, owner: str, stream_id: str) -> None:
        """Delete a receiver's stream. Raises as `find` does."""
        entry = await self.find(owner, stream_id)
        await self._bucket.forget(entry.stream.key)

    async def poll(
        self,
        owner: str,
        stream_id: str,
        *,
        most: int,
        taken: Sequence[str],
        refused: Mapping[str, str],
        wait_seconds: float,
    ) -> Polled:
        """One poll of a receiver (RFC 8936 section 2.4): first what it acknowledges, then what it is given.

        Raises as `find` does, and `NotPolled`, `NotAtWork`, `TooManyPolls`.
        """
        entry = await self.find(owner, stream_id)
        if entry.stream.delivery.method != POLL:
            raise NotPolled
        if self._polls.total() >= MAX_POLLS or self._polls[owner] >= MAX_POLLS_OF_RECEIVER:
            raise TooManyPolls
        self._polls[owner] += 1
        try:
            polling = await self._polling(entry.stream)
            if polling is not None and (taken or refused):
                await polling.acknowledge(taken, refused)
            return await self._given(entry.stream, min(most, MAX_POLLED), wait_seconds if most else 0.0)
        finally:
            self._polls[owner] -= 1
            if not self._polls[owner]:
                del self._polls[owner]

    async def _given(self, stream: Stream, most: int, wait_seconds: float) -> Polled:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(wait_seconds, POLL_SECONDS)
        while True:
            # Looked up again each time: while this waited the stream may have been paused, or changed.
            polling = self._polling_now(stream)
            given = Polled({}, more=False) if polling is None else polling.give(most)
            left = deadline - loop.time()
            if given.sets or left <= 0 or self.closing.is_set():
                return given
            waiting = [self.closing] if polling is None else [self.closing, polling.moved]
            await _any_of(waiting, min(left, LOOK_SECONDS))

    def _polling_now(self, stream: Stream) -> Polling | None:
        at_work = self._at_work.get(subjects.bucket_key(subjects.SSF, stream.key))
        return at_work.delivery if at_work is not None and isinstance(at_work.delivery, Polling) else None

    async def _polling(self, stream: Stream) -> Polling | None:
        """The delivery of a stream, with what the feed has for it in its hands; None for one that is not enabled."""
        if stream.status != "enabled":
            return None
        try:
            async with asyncio.timeout(APPLIED_SECONDS):
                while (polling := self._polling_now(stream)) is None:
                    self._applied.clear()
                    await self._applied.wait()
                await polling.filled.wait()
        except TimeoutError:
            raise NotAtWork from None
        return polling

    async def _apply(self, raw: Raw) -> None:
        """Take over what the bucket says of one stream."""
        try:
            stream = stream_in(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            _log.error("the bucket has a stream that cannot be read", key=raw.subject, why=str(error))
            return
        consumer = f"ssf-{raw.subject.rpartition('.')[2]}" if stream is None else stream.consumer
        at_work = self._at_work.get(raw.subject)
        if stream is None:
            self.streams.pop(raw.subject, None)
        else:
            self.streams[raw.subject] = stream
            if at_work is not None and what_it_is(at_work.delivery.stream) == what_it_is(stream):
                at_work.delivery.replaced(stream)
                return
        if at_work is not None:
            del self._at_work[raw.subject]
            await end(at_work.task)
        if stream is None or stream.status == "disabled":
            self._to_remove.add(consumer)  # nothing is held for it
            return
        self._to_remove.discard(consumer)
        if stream.status == "enabled":
            delivery = delivering(stream, Durable(self._connection, consumer, stream.start_at), self._tools)
            task = asyncio.create_task(delivery.run(), name=f"deliver {stream.stream_id}")
            self._at_work[raw.subject] = _AtWork(delivery, task)

    async def _remove_consumers(self) -> None:
        for consumer in list(self._to_remove):
            with contextlib.suppress(Unavailable):  # the next time, then
                await durable.remove(self._connection, consumer)
                self._to_remove.discard(consumer)


async def _any_of(events: Sequence[asyncio.Event], seconds: float) -> None:
    """Wait until one of them is set, or so long."""
    tasks = [asyncio.create_task(each.wait()) for each in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*tasks)
