"""`GET /revocations/v1/stream`: the gates of the log as server-sent events (WHATWG HTML section 9.2).

For token services that do not speak NATS. `id:` is a position in the log, so a stream that broke is resumed where it
was, without a gap. Events of types that this version does not know are sent under their own type: it is the receiver's
to deny what it cannot read. What does not decode at all is sent as `malformed`, with the subject it stands on.
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, delete, get, put
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Message, Receive, Scope, Send
from msgspec import Struct, structs

from door.problems import Problem, invalid_parameter, unavailable
from door.roles import Caller, requires
from door.serving import ABORT
from grantbook import positions, receipts, subjects, wire
from grantbook.sdk import clocks
from grantbook.sdk.log import Gap, LogReader, Raw, StreamState, Unavailable, assert_dense, place_in_log
from grantbook.sdk.reading import before, stretch
from grantbook.sdk.subscription import put_receipt, read_receipt, take_receipt_away
from projector.api.parameters import span
from projector.feed import at_or_before
from projector.reads import Reads

BEGAN: Final = "began"
CURRENT: Final = "current"
ABOUT: Final = "about"
MAX_STREAMS: Final = 256
"""Streams open at once in one process. Each has a consumer in NATS."""
MAX_STREAMS_OF_A_CALLER: Final = 128
"""Of these, with one token: who opens all that there are leaves room for others."""
MAX_CATCHING_UP: Final = 2
"""Streams that may read the log at once, for what the feed no longer has: each reads all of it from some place on."""
KEPT_MARGIN_SECONDS: Final = 3_600.0
"""So much younger than the feed keeps anything must be what is surely in it."""
SEND_SECONDS: Final = 10.0
"""A caller that takes nothing for so long is let go: it has to come back anyway to know anything."""
MAX_RECEIPTS_OF_A_CALLER: Final = 1_000
COMMENT_SECONDS: Final = 1.0
"""So often a comment says whether everything was sent. The contract promises one every 15 s."""
DOUBT_SECONDS: Final = 0.25
"""Behind one that says that something is missing, the next: while much is revoked at once, the feed is behind the log
at most moments, and has all of it at some."""
MAX_DOUBTS: Final = 8
"""So many in a row come so soon. A feed that stands still has one a second after these."""
BEHIND_SECONDS: Final = 2.0
"""A consumer that gives nothing although the feed has more, for so long, starves: another is made."""
MAX_STREAM_SECONDS: Final = 3_600.0
"""A stream ends after this time, so that its caller shows its token again. It resumes without a gap."""
LATE_SECONDS: Final = 5.0
"""What the feed stored so long after it was decided, the log may have stored well before."""
ASKED_AT_ONCE: Final = 100
RECONNECT_MILLISECONDS: Final = 1_000
RETRY_AFTER_SECONDS: Final = 5
CLOSING_SECONDS: Final = 0.5
_NEXT_SECONDS: Final = 0.5
"""How long a stream may take to notice that the server is being stopped."""


class OpenStreams:
    """The streams that this process has open. A lifespan of the application puts one into `app.state.streams`."""

    def __init__(self) -> None:
        self.of_callers: Counter[str] = Counter()
        self.catching_up = asyncio.Semaphore(MAX_CATCHING_UP)
        self._closed = asyncio.Event()

    @property
    def count(self) -> int:
        """Of all callers."""
        return self.of_callers.total()

    @property
    def closing(self) -> bool:
        """Whether all of them are to end."""
        return self._closed.is_set()

    def close(self) -> None:
        """End all streams within a second. To be called when the server is told to stop, before it waits for them."""
        self._closed.set()

    async def closed(self) -> None:
        """Wait for that."""
        await self._closed.wait()


@contextlib.asynccontextmanager
async def opened_streams(app: Litestar) -> AsyncIterator[None]:
    """Lifespan: what `FEED_ROUTES` need beside `app.state.reads`."""
    app.state.streams = OpenStreams()
    try:
        yield
    finally:
        app.state.streams.close()


def end_streams(app: Litestar) -> None:
    """End all streams of the application, if it has come to have any: for the server that is told to stop."""
    streams: OpenStreams | None = app.state.get("streams")
    if streams is not None:
        streams.close()


class EventStream(ASGIStreamingResponse):
    """An answer that is a stream of events. Counts as open until it is over, however that comes about."""

    def __init__(self, events: AsyncGenerator[bytes, None], streams: OpenStreams, caller: str) -> None:
        super().__init__(
            iterator=events,
            media_type="text/event-stream",
            # Proxies that buffer would hold a revocation back.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._events = events
        self._streams = streams
        self._caller = caller
        streams.of_callers[caller] += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the caller goes away, takes nothing any more, or the events end."""
        abort: Any = (scope.get("extensions") or {}).get(ABORT)

        async def send_in_time(message: Message) -> None:
            sending = asyncio.ensure_future(send(message))
            closing = asyncio.ensure_future(self._streams.closed())
            try:
                # When all are to end, a moment is enough: who is there takes what is sent at once.
                await asyncio.wait((sending, closing), timeout=SEND_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                taken, _ = await asyncio.wait((sending,), timeout=CLOSING_SECONDS)
                if not taken and callable(abort):
                    abort()  # which the server tells as it does when a caller goes away
                await sending
            finally:
                sending.cancel()
                closing.cancel()

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            self._streams.of_callers[self._caller] -= 1
            if not self._streams.of_callers[self._caller]:
                del self._streams.of_callers[self._caller]
            await self._events.aclose()


@get(
    "/revocations/v1/stream",
    guards=[requires("feed")],
    summary="Revocations as they happen",
    responses={
        200: ResponseSpec(
            data_container=str,
            description="Server-sent events. `id` is a position, `event` the type, `data` the event as JSON.",
            media_type="text/event-stream",
            generate_examples=False,
        )
    },
)
async def stream(
    request: Request[Any, Any, State],
    caller: NamedDependency[Caller],
    after: FromQuery[str | None] = None,
    event: FromQuery[str | None] = None,
    lookback: FromQuery[str | None] = None,
) -> EventStream:
    """Follow the revocations of grants and clients, and the cut-offs of users.

    From the position in the header `Last-Event-ID`, else from that in `after`, else from as long ago as `lookback` says
    (`90d`, `3600s`), else from now on. Each second a comment comes: `current`, where everything that the log has was
    sent, with the seconds since that was asked, since the feed heard from the log, and the server's own clock; else why
    that cannot be said. A comment in an event, `about`, has its subject, when the log stored it, and its id there. The
    stream may end at any time: resume it with the last `id` received. With that event's id in `event` it is a 400 where
    another stands there now, in a log that was restored.
    """
    streams: OpenStreams = request.app.state.streams
    reads: Reads = request.app.state.reads
    log = reads.log
    if streams.closing:
        raise unavailable("the server is being stopped")
    later = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    if streams.of_callers[caller.name] >= MAX_STREAMS_OF_A_CALLER:
        detail = f"{MAX_STREAMS_OF_A_CALLER} streams are open with this token"
        raise Problem(429, "too_many_streams", detail, headers=later)
    if streams.count >= MAX_STREAMS:
        raise Problem(503, "too_many_streams", f"{MAX_STREAMS} streams are open", headers=later)
    resume = request.headers.get("last-event-id") or None
    try:
        state = await log.state()
    except Unavailable as error:
        raise unavailable("the log cannot be reached") from error
    start = positions.Position("log", state.identity, state.last)
    if resume is not None or after is not None:
        name, text = ("Last-Event-ID", resume) if resume is not None else ("after", after or "")
        start = _position(name, text, head=start)
        if event is not None and not await _stands(log, start.sequence, event):
            raise invalid_parameter("event", "the id of the event at that position")
    elif lookback is not None:
        length = span("lookback", lookback)
        try:
            # By the log's own clock: the caller's may be wrong.
            sequence = await before(log, state, state.now - length)
        except Unavailable as error:
            raise unavailable("the log cannot be reached") from error
        start = positions.Position("log", state.identity, sequence)
    return EventStream(_events(reads, start, streams), streams, caller.name)


@put("/revocations/v1/subscribers/{name:str}/{instance:str}", guards=[requires("feed")], status_code=204)
async def put_own_receipt(
    request: Request[Any, Any, State],
    caller: NamedDependency[Caller],
    name: FromPath[str],
    instance: FromPath[str],
) -> None:
    """Say how far a subscriber that reads over HTTP has applied the revocations, for admins to see.

    The name is its token's from then on: with another token nobody can say something else, or take the receipt away.
    """
    receipt = receipts.decode(await request.body())
    if receipt is None:
        raise invalid_parameter("body", "a receipt: see grantbook.receipts")
    if (receipt.name, receipt.instance) != (name, instance):
        raise invalid_parameter("name", "the same in the path and in the receipt")
    if receipt.feed is not None:
        raise invalid_parameter("feed", "absent: who reads over HTTP knows places in the log alone")
    reads: Reads = request.app.state.reads
    try:
        if not await _is_callers(reads, caller, name, instance) and not await reads.receipts.lets_in(
            caller.name, MAX_RECEIPTS_OF_A_CALLER
        ):
            detail = f"this token has {MAX_RECEIPTS_OF_A_CALLER} subscribers; an admin can forget those that are gone"
            raise Problem(403, "too_many_subscribers", detail)
        await put_receipt(reads.connection, structs.replace(receipt, by=caller.name))
    except Unavailable as error:
        raise unavailable(str(error)) from error


@delete("/revocations/v1/subscribers/{name:str}/{instance:str}", guards=[requires("feed")], status_code=204)
async def take_own_receipt_away(
    request: Request[Any, Any, State],
    caller: NamedDependency[Caller],
    name: FromPath[str],
    instance: FromPath[str],
) -> None:
    """A subscriber that reads over HTTP ends in good order."""
    for which, text in (("name", name), ("instance", instance)):
        if not receipts.is_name(text):
            raise invalid_parameter(which, "1 to 64 letters, digits, dots, - and _")
    reads: Reads = request.app.state.reads
    try:
        if await _is_callers(reads, caller, name, instance):
            await take_receipt_away(reads.connection, name, instance)
    except Unavailable as error:
        raise unavailable(str(error)) from error


async def _is_callers(reads: Reads, caller: Caller, name: str, instance: str) -> bool:
    """Whether the receipt is this caller's; False where there is none. Raises a `Problem` for another's."""
    found = await read_receipt(reads.connection, name, instance)
    if found is not None and found.by != caller.name:
        raise Problem(403, "not_permitted", "this subscriber reports with another token, or over NATS")
    return found is not None


FEED_ROUTES: Final = [stream, put_own_receipt, take_own_receipt_away]


def _position(name: str, text: str, *, head: positions.Position) -> positions.Position:
    try:
        position = positions.parse(text)
    except positions.InvalidPosition as error:
        raise invalid_parameter(name, str(error)) from error
    if position.kind != "log" or position.identity != head.identity:
        raise invalid_parameter(name, f"a position of this log, like {head}")
    if position.sequence > head.sequence:
        raise invalid_parameter(name, f"a position up to the log's end, {head}")
    return position


async def _stands(log: LogReader, sequence: int, event_id: str) -> bool:
    try:
        found = await log.at_on_leader(sequence)
    except Unavailable as error:
        raise unavailable("the log cannot be reached") from error
    return found is not None and (found.headers or {}).get("ce-id") == event_id


async def _events(reads: Reads, start: positions.Position, streams: OpenStreams) -> AsyncGenerator[bytes, None]:
    # The first `id` goes without an event: a caller that loses the connection before one still resumes from here.
    # And a clock, as early as can be: by it the caller knows how old what follows is.
    began = f": {BEGAN} {clocks.now():.3f}\nretry: {RECONNECT_MILLISECONDS}\nid: {start}\n\n"
    yield began.encode()
    try:
        begun = await _begun(reads, start.sequence)
        for part in (_from_log(reads, start, begun, streams), _from_feed(reads, start, begun, streams)):
            async with aclosing(part):
                async for each in part:
                    yield each
    except (Unavailable, Gap):
        return  # whoever comes back begins anew, from where it was, and is told where that means nothing any more


async def _from_feed(
    reads: Reads, start: positions.Position, begun: "_Begun", streams: OpenStreams
) -> AsyncGenerator[bytes, None]:
    """Revocations as they happen, and each second, or sooner, whether that is all.

    Raises `Gap` for a feed that is another.
    """
    loop = asyncio.get_running_loop()
    end_at = loop.time() + MAX_STREAM_SECONDS
    comment_at = loop.time()
    doubts, behind_since = 0, math.inf
    reached, followed = begun.complete_from, begun.after
    async with reads.feed.follow(begun.after) as follower:
        while not streams.closing and loop.time() < end_at:
            messages = await follower.next(min(_NEXT_SECONDS, max(0.0, comment_at - loop.time())))
            assert_dense(messages, followed)  # else it aged out just now: who comes back is told of it from the log
            followed = follower.after
            news = [(place, each) for each in messages if (place := _place(each, reached)) is not None]
            if news:
                reached = news[-1][0]
                news = await _dated(reads.log, news)
                yield b"".join(_event(each, structs.replace(start, sequence=place)) for place, each in news)
            if loop.time() >= comment_at:
                if not await _is_same_log(reads.log, start, reached):
                    return
                proof = await reads.feed_head.proof()
                doubt = proof.doubt
                if doubt is None and proof.feed != begun.feed:
                    return
                if doubt is None and followed < proof.sequence:
                    doubt = "more is on its way"
                    behind_since = min(behind_since, loop.time())
                    if loop.time() - behind_since > BEHIND_SECONDS and not messages:
                        await follower.close()
                        behind_since = math.inf
                else:
                    behind_since = math.inf
                now = clocks.now()
                yield (
                    f": {CURRENT} {now - proof.asked_at:.3f} {now - proof.heard_at:.3f} {now:.3f}\n\n"
                    if doubt is None
                    else f": waiting: {doubt}\n\n"
                ).encode()
                doubts = 0 if doubt is None else doubts + 1
                comment_at = loop.time() + (DOUBT_SECONDS if 0 < doubts <= MAX_DOUBTS else COMMENT_SECONDS)


def _place(raw: Raw, reached: int) -> int | None:
    """Where a revocation of the feed stands in the log. None for one that was told already, in a feed made anew.

    What does not say where it comes from is nobody's revocation that we know. It is told as such, and not skipped.
    """
    place = place_in_log(raw)
    return reached if place == 0 else place if place > reached else None


class _Begun(Struct, frozen=True):
    """Where a stream begins: in which feed, behind which of its messages, and from which place in the log on.

    The feed has every revocation behind that place. Others, behind what the caller has, are in the log alone.
    """

    feed: str
    after: int
    complete_from: int


async def _begun(reads: Reads, after: int) -> _Begun:
    """Where to begin for a caller that has everything up to a place in the log. Raises `Unavailable`."""
    state = await reads.feed.state()
    before_it, found = await at_or_before(reads.feed, state, after)
    if found is not None or state.first <= 1 or await _is_kept(reads.log, state, after):
        return _Begun(state.identity, before_it, after)
    oldest = await reads.feed.at_on_leader(state.first) if state.last >= state.first else None
    # An empty feed will have whatever it does not have yet: what the log has by now is read there.
    complete_from = (await reads.log.state()).last if oldest is None else place_in_log(oldest) - 1
    return _Begun(state.identity, state.first - 1, max(after, complete_from))


async def _is_kept(log: LogReader, feed: StreamState, after: int) -> bool:
    """Whether everything behind a place in the log is too young for the feed to have let go of it."""
    if feed.max_bytes > 0 or feed.config.get("max_msgs", 0) > 0:
        return False
    following = await log.at_on_leader(after + 1)
    age = math.inf if following is None else (feed.now - following.stored_at).total_seconds()
    return following is None or not feed.max_age_seconds or age < feed.max_age_seconds - KEPT_MARGIN_SECONDS


async def _from_log(
    reads: Reads, start: positions.Position, begun: _Begun, streams: OpenStreams
) -> AsyncGenerator[bytes, None]:
    """Those that the feed no longer has, out of all that the log has. Few streams at a time may do this.

    Raises `Unavailable`, and `Gap` for a log that lacks something.
    """
    until = begun.complete_from
    if until <= start.sequence:
        return
    loop = asyncio.get_running_loop()
    comment_at = loop.time()
    while streams.catching_up.locked():
        yield b": waiting: others catch up with the log\n\n"
        await asyncio.sleep(COMMENT_SECONDS)
    async with streams.catching_up:
        async for messages in stretch(reads.log, start.sequence, until):
            if streams.closing:
                raise Unavailable("the server is being stopped")
            gates = [each for each in messages if subjects.is_gate(each.subject)]
            if gates:
                yield b"".join(_event(each, structs.replace(start, sequence=each.sequence)) for each in gates)
            if loop.time() >= comment_at:
                yield b": waiting: more is on its way\n\n"
                comment_at = loop.time() + COMMENT_SECONDS


async def _dated(log: LogReader, news: list[tuple[int, Raw]]) -> list[tuple[int, Raw]]:
    """Revocations with the log's own times. A feed that was made anew, or was behind, has later ones."""
    late = [each for each in news if _lateness(each[1]) > LATE_SECONDS]
    times: dict[int, datetime] = {}
    for start in range(0, len(late), ASKED_AT_ONCE):
        asked = (log.at_on_leader(place) for place, _ in late[start : start + ASKED_AT_ONCE])
        with contextlib.suppress(Unavailable):  # then the later ones stand: they end more, and not less
            found = await asyncio.gather(*asked)
            times |= {each.sequence: each.stored_at for each in found if each is not None}
    return [(place, structs.replace(raw, stored_at=times.get(place, raw.stored_at))) for place, raw in news]


def _lateness(raw: Raw) -> float:
    """Seconds from when it was decided, as far as it says, to when it was stored."""
    try:
        return (raw.stored_at - datetime.fromisoformat((raw.headers or {})["ce-time"])).total_seconds()
    except (KeyError, ValueError, TypeError):  # absent, no time, or one without a zone
        return math.inf


async def _is_same_log(log: LogReader, start: positions.Position, followed: int) -> bool:
    """Whether positions still mean what they meant. A log that cannot be reached may yet be the same."""
    try:
        state = await log.state()
    except Unavailable:
        return True
    return state.identity == start.identity and state.last >= followed


def _event(raw: Raw, position: positions.Position) -> bytes:
    id_ = "".join((raw.headers or {}).get("ce-id", "").split())
    about = f": {ABOUT} {raw.subject} {wire.rfc3339(raw.stored_at)} {id_}"
    try:
        type_, data = raw.recorded().type, raw.data
    except wire.Malformed:
        type_, data = "malformed", msgspec.json.encode({"subject": raw.subject})
    # The type is anybody's text. Without one it would be no event to any reader (WHATWG HTML section 9.2.6), a line
    # break would end the field, and what is trimmed to a type that is known would be believed here, and nowhere else.
    if not type_ or type_ != " ".join(type_.split()):
        type_, data = "malformed", msgspec.json.encode({"subject": raw.subject})
    lines = [f"id: {position}".encode(), b"event: " + type_.encode()]
    lines += [b"data: " + line for line in data.splitlines() or [b""]]
    lines.append(about.encode())
    return b"\n".join(lines) + b"\n\n"
