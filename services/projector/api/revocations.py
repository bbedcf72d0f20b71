"""`GET /revocations/v1/stream`: the gates of the log as server-sent events (WHATWG HTML section 9.2).

For token services that do not speak NATS. `id:` is a position in the log, so a stream that broke is resumed where it
was, without a gap. Events of types that this version does not know are sent under their own type: it is the receiver's
to deny what it cannot read. What does not decode at all is sent as `malformed`, with the subject it stands on.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Scope, Send

from door.problems import Problem, invalid_parameter, unavailable
from door.roles import requires
from grantbook import positions, subjects, wire
from grantbook.sdk.log import Follower, LogReader, Raw, Unavailable

MAX_STREAMS: Final = 256
"""Streams open at once in one process. Each has a consumer in NATS."""
COMMENT_SECONDS: Final = 10.0
"""After so long without an event a comment is sent: the contract promises one every 15 s."""
MAX_STREAM_SECONDS: Final = 3_600.0
"""A stream ends after this time, so that its caller shows its token again. It resumes without a gap."""
RECONNECT_MILLISECONDS: Final = 1_000
RETRY_AFTER_SECONDS: Final = 5
_NEXT_SECONDS: Final = 0.5
"""How long a stream may take to notice that the server is being stopped."""


class OpenStreams:
    """The streams that this process has open. A lifespan of the application puts one into `app.state.streams`."""

    def __init__(self) -> None:
        self.count = 0
        self.closing = False

    def close(self) -> None:
        """End all streams within a second. To be called when the server is told to stop, before it waits for them."""
        self.closing = True


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

    def __init__(self, events: AsyncGenerator[bytes, None], streams: OpenStreams) -> None:
        super().__init__(
            iterator=events,
            media_type="text/event-stream",
            # Proxies that buffer would hold a revocation back.
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._events = events
        self._streams = streams
        streams.count += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until the caller goes away or the events end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.count -= 1
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
async def stream(request: Request[Any, Any, State], after: FromQuery[str | None] = None) -> EventStream:
    """Follow the revocations of grants and clients, and the cut-offs of users.

    From the position in the header `Last-Event-ID`, else from that in `after`, else from now on. A comment comes at
    least every 15 s. The stream may end at any time: resume it with the last `id` received.
    """
    streams: OpenStreams = request.app.state.streams
    reads = request.app.state.reads
    log: LogReader = reads.log
    if streams.closing:
        raise unavailable("the server is being stopped")
    if streams.count >= MAX_STREAMS:
        raise Problem(
            503,
            "too_many_streams",
            f"{MAX_STREAMS} streams are open",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    resume = request.headers.get("last-event-id") or None
    try:
        state = await log.state()
    except Unavailable as error:
        raise unavailable("the log cannot be reached") from error
    start = positions.Position("log", state.identity, state.last)
    if resume is not None or after is not None:
        name, text = ("Last-Event-ID", resume) if resume is not None else ("after", after or "")
        start = _position(name, text, head=start)
    return EventStream(_events(log, start, streams), streams)


FEED_ROUTES: Final = [stream]


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


async def _events(log: LogReader, start: positions.Position, streams: OpenStreams) -> AsyncGenerator[bytes, None]:
    # The first `id` goes without an event: a caller that loses the connection before one still resumes from here.
    yield b"retry: %d\nid: %s\n\n" % (RECONNECT_MILLISECONDS, str(start).encode())
    loop = asyncio.get_running_loop()
    end_at = loop.time() + MAX_STREAM_SECONDS
    comment_at = loop.time() + COMMENT_SECONDS
    async with log.follow(start.sequence, subjects.GATES) as follower:
        while not streams.closing and loop.time() < end_at:
            messages = await follower.next(_NEXT_SECONDS)
            if messages:
                yield b"".join(_event(each, start.identity) for each in messages)
            if loop.time() >= comment_at:
                if not await _is_same_log(log, start, follower):
                    return
                yield b": %s\n\n" % (b"waiting" if follower.trouble is None else b"the log cannot be reached")
                comment_at = loop.time() + COMMENT_SECONDS


async def _is_same_log(log: LogReader, start: positions.Position, follower: Follower) -> bool:
    """Whether positions still mean what they meant. A log that cannot be reached may yet be the same."""
    followed = follower.after
    try:
        state = await log.state()
    except Unavailable:
        return True
    return state.identity == start.identity and state.last >= followed


def _event(raw: Raw, identity: str) -> bytes:
    position = positions.Position("log", identity, raw.sequence)
    try:
        type_, data = raw.recorded().type, raw.data
    except wire.Malformed:
        type_, data = "malformed", msgspec.json.encode({"subject": raw.subject})
    # A line break would end the field: of the type, which is anybody's text, none is kept; data may have several lines.
    lines = [f"id: {position}".encode(), b"event: " + " ".join(type_.split()).encode()]
    lines += [b"data: " + line for line in data.splitlines() or [b""]]
    return b"\n".join(lines) + b"\n\n"
