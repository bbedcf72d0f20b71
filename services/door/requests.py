"""What surrounds every request: its id, its trace, one access line, and the headers that every answer carries.

A raw ASGI middleware around the whole application, so that it also sees what no route matched. It logs the path
*template*, never the path, the query, a token or a body: ids of people and clients stay out of access logs.
"""

import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, cast

import structlog
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from door import access, metrics

RawHeaders = Iterable[tuple[bytes, bytes]]

REQUEST_ID_HEADER: Final = "X-Request-Id"
NOT_STORED: Final = ("/idp", "/admin", "/audit", "/auth", "/console")
"""Answers under these prefixes hold personal data or credentials: no cache may keep them."""
QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: their access lines are for debugging alone."""
UNMATCHED: Final = "unmatched"
"""Path template in the access line where no route matched: the path itself is the caller's to choose, so not logged."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}\Z")
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
"""W3C Trace Context section 3.2.2; versions after 00 may have more parts, which are dropped."""
_TRACEPARENT_CHARACTERS: Final = 55

log = structlog.get_logger("door")


class _Current:
    """One request under way."""

    __slots__ = ("caller", "request_id", "traceparent")

    def __init__(self, request_id: str, traceparent: str | None) -> None:
        self.request_id = request_id
        self.traceparent = traceparent
        self.caller: str | None = None


_current: ContextVar[_Current | None] = ContextVar("grantbook_request", default=None)


def current_request_id() -> str | None:
    """Id of the request that this code runs for, or nothing outside of one."""
    current = _current.get()
    return current.request_id if current else None


def current_traceparent() -> str | None:
    """The request's `traceparent` (W3C Trace Context) where it sent a valid one: goes on into the log's events."""
    current = _current.get()
    return current.traceparent if current else None


def current_caller() -> str | None:
    """Name of the token that the request was let in with."""
    current = _current.get()
    return current.caller if current else None


def note_caller(name: str) -> None:
    """Remember who is asking, for the log lines of this request."""
    current = _current.get()
    if current:
        current.caller = name


def request_id_in(value: bytes | None) -> str | None:
    """The request id that a caller sent, if it is one that may stand in our logs."""
    return value.decode() if value is not None and _REQUEST_ID.match(value) else None


def traceparent_in(value: bytes | None) -> str | None:
    """The `traceparent` that a caller sent, if it is valid; what a later version appended is cut off."""
    if value is None:
        return None
    match = _TRACEPARENT.match(value)
    if match is None or (match[1] is not None and value.startswith(b"00")):
        return None
    return value[:_TRACEPARENT_CHARACTERS].decode()


def around(app: ASGIApp, *, name: str, mint_request_id: Callable[[], str]) -> ASGIApp:
    """The application with all of this around it; its requests are counted under `name`.

    `mint_request_id` gives ids of `[A-Za-z0-9_-]{1,64}`.
    """

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        current = _of_headers(scope["headers"], mint_request_id)
        method, path = scope["method"], scope["path"]
        if method == HttpMethod.HEAD:
            # RFC 9110 section 9.3.2: HEAD is GET without the content; the framework routes it to nothing on its own.
            # In a copy: servers look into the scope that they gave, to know that no content will follow.
            scope = cast("Scope", {**scope, "method": HttpMethod.GET})
            send = _without_content(send)
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # The template first: `//idp/v1` reaches the route of `/idp/v1`, and only the template says so.
                answered = cast("dict[str, Any]", scope).get("path_template", path)
                message["headers"] = _with_ours(message["headers"], answered, current)
            await send(message)

        token = _current.set(current)
        try:
            await app(scope, receive, send_with_headers)
        finally:
            template = cast("dict[str, Any]", scope).get("path_template", UNMATCHED)
            seconds = time.perf_counter() - started
            metrics.note(name, method, template, status, seconds)
            _say(current, method, template, status, round(seconds * 1_000, 2))
            _current.reset(token)

    return middleware


def _say(current: _Current, method: str, template: str, status: int, milliseconds: float) -> None:
    """The access line of a request. Status 0: the caller left before there was an answer."""
    if access.lines.are_json and template not in QUIET:
        access.lines.add(method, template, status, milliseconds, current.request_id, current.caller)
    else:
        say = log.debug if template in QUIET else log.info
        say("request", method=method, path=template, status=status, ms=milliseconds)


def _of_headers(headers: RawHeaders, mint_request_id: Callable[[], str]) -> _Current:
    sent_id: bytes | None = None
    sent_trace: bytes | None = None
    for name, value in headers:
        if name == b"x-request-id":
            sent_id = value
        elif name == b"traceparent":
            # More than one is invalid (W3C Trace Context section 3.2).
            sent_trace = value if sent_trace is None else b""
    return _Current(request_id_in(sent_id) or mint_request_id(), traceparent_in(sent_trace))


def _with_ours(headers: RawHeaders, path: str, current: _Current) -> list[tuple[bytes, bytes]]:
    ours = [*headers, (b"x-request-id", current.request_id.encode()), _NOT_SNIFFED]
    if path.startswith(NOT_STORED) and b"cache-control" not in [name for name, _ in ours]:
        ours.append(_NO_STORE)
    return ours


_NOT_SNIFFED: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")


def _without_content(send: Send) -> Send:
    ended = False

    async def send_start_alone(message: Message) -> None:
        nonlocal ended
        if message["type"] != "http.response.body":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_start_alone
