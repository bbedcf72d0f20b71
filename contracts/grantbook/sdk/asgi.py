"""An ASGI application behind a check of its access tokens: in Starlette, FastAPI, Litestar and whatever speaks ASGI 3.

    app = RevocationMiddleware(app, feed=feed, verifier=verifier)

A request without a token that verifies, or whose grant has ended, is answered 401 (RFC 6750 section 3) and never
reaches the application. What the token says is in `scope["grantbook.access"]`, an `Access`, and in frameworks that know
`request.state` also in `request.state.grantbook_access`. Answers that go on for long, event streams and sockets, end
soon after their token was revoked or has expired. Needs `pip install 'grantbook[tokens]'`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, Protocol

from grantbook.sdk.revocations import Revocations
from grantbook.sdk.tasks import end
from grantbook.sdk.tokens import LEEWAY_SECONDS, Access, KeysUnavailable, TokenRefused

ACCESS: Final = "grantbook.access"
"""Where in the scope the `Access` of the request is."""
STATE: Final = "grantbook_access"
"""Where it is in the scope's `state`."""
RECHECK_SECONDS: Final = 1.0
"""Default of how soon a long answer ends after its token was revoked."""
MAX_HEADER_BYTES: Final = 20_000
CLOSE_POLICY: Final = 1008
"""Close code of a socket whose token does not count (RFC 6455 section 7.4.1: policy violation)."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Verifier(Protocol):
    """What turns a token into what it says: `JwtVerifier`, or one of yours that asks an introspection endpoint."""

    async def verify(self, token: str) -> Access:
        """Raises `TokenRefused`, and `KeysUnavailable` where nobody knows."""


class Reports(Protocol):
    """What hears of use: an `ActivityReporter`, or one of yours."""

    def report(self, client_id: str, grant_id: str, kind: str) -> None:
        """Does not wait."""


class RevocationMiddleware:
    """Lets requests with a token that counts through to `app`.

    `protects` says which paths are protected, all unless it is given; `exempt` are paths that are not, such as
    `/.well-known/oauth-protected-resource`. `resource_metadata` is the URL to tell in a 401 (RFC 9728 section 5.1).
    With `activity`, each request that is let through is reported as a `tool_call`. `recheck_seconds` is how often the
    token of an answer that is under way is looked at again.
    """

    def __init__(
        self,
        app: App,
        *,
        feed: Revocations,
        verifier: Verifier,
        activity: Reports | None = None,
        protects: Callable[[str], bool] | None = None,
        exempt: Iterable[str] = (),
        resource_metadata: str | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if resource_metadata is not None and not _is_quotable(resource_metadata):
            raise ValueError("resource_metadata is a URL")
        self._app = app
        self._feed = feed
        self._verifier = verifier
        self._activity = activity
        self._protects = protects
        self._exempt = frozenset(exempt)
        self._resource_metadata = resource_metadata
        self._recheck_seconds = recheck_seconds
        self._clock = time.time if clock is None else clock  # noqa: TID251  the default for programs that are not ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] not in {"http", "websocket"} or not self._is_protected(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            access = await self._access(scope)
        except _NoToken:
            await self._refuse(scope, receive, send, 401, None)
            return
        except (KeysUnavailable, _NobodyKnows):
            await self._refuse(scope, receive, send, 503, None)
            return
        except TokenRefused:
            await self._refuse(scope, receive, send, 401, "invalid_token")
            return
        if self._activity is not None:
            self._activity.report(access.client_id, access.grant_id, "tool_call")
        # Layers without and within share the state, so it is written to; the scope itself is a copy for those within.
        state = scope.setdefault("state", {})
        state[STATE] = access
        await self._let_through(access, {**scope, ACCESS: access}, receive, send)

    def _is_protected(self, path: str) -> bool:
        return path not in self._exempt and (self._protects is None or self._protects(path))

    async def _access(self, scope: Scope) -> Access:
        token = bearer_token(scope)
        if token is None:
            raise _NoToken
        access = await self._verifier.verify(token)
        if self._is_revoked(access):
            if self._feed.state != "fresh":
                # Its token may be good: told that it is not, an agent would throw it away, and ask its user again.
                raise _NobodyKnows
            raise TokenRefused("its grant has ended")
        return access

    def _is_revoked(self, access: Access) -> bool:
        return self._feed.is_revoked(access.client_id, access.grant_id, access.user_id, access.issued_at)

    def _counts_still(self, access: Access) -> bool:
        return self._clock() < access.expires_at + LEEWAY_SECONDS and not self._is_revoked(access)

    async def _let_through(self, access: Access, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and end its answer if the token stops counting meanwhile."""
        answer = _Answer(send)
        running = asyncio.ensure_future(self._app(scope, receive, answer.send))
        try:
            while not running.done():
                await asyncio.wait((running,), timeout=self._recheck_seconds)
                if not running.done() and not answer.ended and not self._counts_still(access):
                    answer.cut_off = True
                    break
        finally:
            if not running.done():
                await end(running)
                if not running.cancelled():
                    running.exception()  # what it raised as it was ended is nobody's concern, and not logged as lost
        if not answer.cut_off:
            await running
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": CLOSE_POLICY})
        elif not answer.begun and self._feed.state != "fresh":
            await self._refuse(scope, receive, send, 503, None)
        elif not answer.begun:
            await self._refuse(scope, receive, send, 401, "invalid_token")
        elif answer.of_events:
            # Events have an end of their own: a client that connects again is told why.
            await send({"type": "http.response.body", "body": b""})
        # Else the server cuts the connection, so that nobody takes a part for the whole.

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, error: str | None) -> None:
        if scope["type"] == "websocket":
            await receive()  # the request to connect
            if "websocket.http.response" not in (scope.get("extensions") or {}):
                await send({"type": "websocket.close", "code": CLOSE_POLICY})
                return
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        body = b'{"error":"%s"}' % (error or ("unauthorized" if status == 401 else "temporarily_unavailable")).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 401:
            headers.append((b"www-authenticate", self._challenge(error).encode()))
        else:
            headers.append((b"retry-after", b"5"))
        await send({"type": f"{kind}.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})

    def _challenge(self, error: str | None) -> str:
        """RFC 6750 section 3: no error where no token was sent."""
        parts = [] if error is None else [f'error="{error}"', 'error_description="The access token does not count"']
        if self._resource_metadata is not None:
            parts.append(f'resource_metadata="{self._resource_metadata}"')
        return f"Bearer {', '.join(parts)}".strip()


class _Answer:
    """What the application has sent so far."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.ended = False
        self.of_events = False
        self.cut_off = False

    async def send(self, message: Message) -> None:
        """Send on, but for what the application still says as it is ended."""
        if self.cut_off:
            return
        kind = message["type"]
        if kind in {"http.response.start", "websocket.accept"}:
            self.begun = True
            self.of_events = _is_of_events(message.get("headers", ()))
        # A socket that is refused with an answer has nothing left to end either.
        if kind in {"websocket.close", "websocket.http.response.start"} or (
            kind == "http.response.body" and not message.get("more_body", False)
        ):
            self.ended = True
        await self._send(message)


class _NobodyKnows(Exception):
    """The feed cannot prove that it has everything, so the token is denied, whatever it is."""


class _NoToken(Exception):
    """The request has no bearer token, or something else."""


def bearer_token(scope: Scope) -> str | None:
    """The bearer token of a request (RFC 6750 section 2.1), or None where it has not exactly one. Total."""
    found: list[bytes] = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(found) != 1 or len(found[0]) > MAX_HEADER_BYTES:
        return None
    scheme, _, token = found[0].strip().partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or not token.isascii() or b" " in token:
        return None
    return token.decode("ascii")


def _is_of_events(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and b"text/event-stream" in value.lower() for name, value in headers)


def _is_quotable(text: str) -> bool:
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text
