"""The feed of revocations over HTTP, for token services that do not speak NATS.

    async with HttpRevocationFeed("https://grantbook.example", feed_token, timedelta(hours=1)) as feed:
        ...
        if feed.is_revoked(client_id, grant_id, user_id, token_issued_at):
            ...  # answer 401

It reads `GET /revocations/v1/stream`, server-sent events (WHATWG HTML section 9.2), and is otherwise what
`RevocationFeed` is: see `Revocations` for all that it takes and raises. Each second the stream says in a comment
whether all that the log has was sent. Without that it is not fresh, and denies.

Libraries for server-sent events drop comments, so the few lines of the format that matter are read here.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Final, Unpack

import httpx
from msgspec import Struct

from grantbook import positions, receipts
from grantbook.positions import Position
from grantbook.receipts import Receipt
from grantbook.sdk import clocks
from grantbook.sdk.denials import Denials
from grantbook.sdk.log import Raw, Unavailable
from grantbook.sdk.revocations import FeedUnavailable, Options, Replaced, Revocations

STREAM: Final = "/revocations/v1/stream"
SUBSCRIBERS: Final = "/revocations/v1/subscribers"
BEGAN: Final = "began"
"""First word of the first comment: then what a clock of the server's shows."""
CURRENT: Final = "current"
"""First word of the comment that says that all was sent: then seconds since that was asked, since the feed heard from
the log, and what a clock of the server's shows."""
ABOUT: Final = "about"
"""First word of the comment in an event: then its subject, when the log stored it, and its id there."""
CONNECT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 4.0
"""The stream says something each second. Without a word for so long, the connection is given up."""
RETRY_SECONDS: Final = 0.5
RECOMPARE_SECONDS: Final = 30.0
"""A stream that is older, and by its clock too late to be fresh, is begun anew."""
MAX_LINE_BYTES: Final = 1024 * 1024


class Refused(Exception):
    """The server does not want this token. Says so."""


class Sent(Struct):
    """An event of the stream, as far as it has come."""

    id: str = ""
    type: str = ""
    data: list[bytes] = []
    about: str = ""


class HttpRevocationFeed(Revocations):
    """Knows in memory what was revoked, over HTTP: see `Revocations`.

    `feed_token` is a bearer token of the role `feed`. `http` may bring a client of your own, for other certificates or
    a proxy; it is left open.
    """

    def __init__(
        self,
        base_url: str,
        feed_token: str,
        longest_token_lifetime: timedelta,
        *,
        http: httpx.AsyncClient | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(longest_token_lifetime, **options)
        if not (feed_token.isascii() and feed_token.isprintable() and " " not in feed_token and feed_token):
            # Said here, and without it: what is said of a header that cannot be sent would have the token in it.
            raise ValueError("the feed token has characters that no token has: check how it was read")
        self._base = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {feed_token}", "Accept-Encoding": "identity"}
        self._given = http
        self._http: httpx.AsyncClient | None = None
        self._stack = AsyncExitStack()
        self._resume: Position | None = None
        self._resume_event = ""
        self._sent_at = -math.inf
        self._offset: float | None = None
        """By how much our clock is ahead of the server's, in seconds: rather less than it is, never more."""

    async def _open(self) -> None:
        if self._given is not None:
            self._http = self._given
        else:
            timeout = httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS)
            self._http = await self._stack.enter_async_context(httpx.AsyncClient(timeout=timeout))

    async def _close(self) -> None:
        self._http = None
        await self._stack.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            raise Unavailable("the feed is not open")
        return self._http

    async def _put_receipt(self, receipt: Receipt) -> None:
        await self._tell("PUT", receipts.encode(receipt))

    async def _take_receipt_away(self) -> None:
        await self._tell("DELETE", None)

    async def _tell(self, method: str, body: bytes | None) -> None:
        url = f"{self._base}{SUBSCRIBERS}/{self._subscriber}/{self._instance}"
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        try:
            answer = await self._client().request(
                method, url, content=body, headers=headers, timeout=CONNECT_SECONDS, follow_redirects=False
            )
        except httpx.HTTPError as error:
            message = f"no receipt could be handed in: {error!r}"
            raise Unavailable(message) from error
        if answer.status_code != 204:
            message = f"a receipt was answered {answer.status_code}"
            raise Unavailable(message)

    async def _follow(self) -> None:
        while True:
            pause = RETRY_SECONDS
            try:
                await self._read()
                self._report("the stream ended; it is resumed")
                pause = 0.0
            except Replaced:
                self._resume, self._resume_event = None, ""
                self._log_identity = None
                self._restart("the log was replaced: starting anew")
            except (Refused, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                # What httpx says of a header that it cannot send has the header in it, and so the token.
                refusal = str(error) if isinstance(error, Refused) else "no request can be sent with this URL and token"
                self._report(refusal)
                if not self._caught_up.is_set():
                    raise FeedUnavailable(refusal) from None
            except (httpx.HTTPError, Unavailable) as error:
                self._report(str(error) or repr(error))
            except Exception as error:  # noqa: BLE001  whatever it is: what is known stays denied, and it goes on
                self._resume = None
                self._restart(f"starting anew after {error!r}")
            await asyncio.sleep(pause)

    async def _read(self) -> None:
        """Read one stream to its end. Raises `Replaced`, `Refused`, `Unavailable` and httpx's errors."""
        headers = self._headers | {"Accept": "text/event-stream"}
        if not self._resume_event:
            # A place without an event proves nothing of a log that may have been restored: better to read again.
            self._resume = None
        if self._resume is None:
            parameters = {"lookback": f"{math.ceil(self._keep.total_seconds())}s"}
            # What was known stays in force until the stream is read: a restart never allows what was denied.
            self._building = Denials(self._keep.total_seconds())
        else:
            headers["Last-Event-ID"] = str(self._resume)
            parameters = {"event": self._resume_event} if self._resume_event else {}
        stream = self._client().stream(
            "GET",
            f"{self._base}{STREAM}",
            params=parameters,
            headers=headers,
            timeout=httpx.Timeout(CONNECT_SECONDS, read=SILENCE_SECONDS),  # also where the client is not ours
            follow_redirects=False,
        )
        self._offset, self._sent_at = None, clocks.now()
        async with stream as response:
            self._check(response)
            event = Sent()
            async for line in _lines(response):
                if line:
                    self._hear(line, event)
                else:
                    self._apply(event)
                    event = Sent()

    def _hear(self, line: bytes, event: Sent) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"id":
                event.id = value.decode()
            case b"event":
                event.type = value.decode()
            case b"data":
                event.data.append(value)
            case b"":
                word, _, rest = value.decode().partition(" ")
                if word == ABOUT:
                    event.about = rest
                elif word == BEGAN:
                    self._compare_clocks(float(rest))
                elif word == CURRENT:
                    self._take_proof(rest)
                else:
                    self._doubted(f"the server says: {value.decode()[:200]}")
            case _:
                pass  # `retry`, which is ours to choose, and what may come

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status == 400 and self._resume is not None:
            raise Replaced  # the position is of another log, or lies behind its end
        if status in {400, 401, 403, 404, 405} or 300 <= status < 400:
            message = f"{self._base} answers the feed's request with {status}"
            raise Refused(message)
        message = f"{self._base} answers {status}"
        raise Unavailable(message)

    def _take_proof(self, text: str) -> None:
        """All was sent. What was read late, from a slow path or some buffer, proves nothing about now."""
        asked_ago, heard_ago, server = map(float, text.split()[:3])
        asked_at = server + self._compare_clocks(server) - asked_ago
        self._proven(asked_at, asked_at + asked_ago - heard_ago)
        now = clocks.now()
        if now - asked_at > self._max_staleness_seconds and now - self._sent_at > RECOMPARE_SECONDS:
            # The path became slow, or the two clocks went apart: another request tells which, and by how much.
            raise Unavailable("what comes is too old: asking anew")
        self._report(None)

    def _compare_clocks(self, server: float) -> float:
        """By how much our clock is ahead of the server's, which showed `server` in what was read just now.

        The server cannot have read its clock before it was asked: it showed its first time at `_sent_at` of ours or
        later, however long that was on its way. Taken for the very moment, all that follows is older than it is, by
        what the request took; never newer. And nothing is read before it was written: that bounds it again.
        """
        offset = self._sent_at - server if self._offset is None else self._offset
        self._offset = min(offset, clocks.now() - server)
        return self._offset

    def _apply(self, sent: Sent) -> None:
        if not sent.id:
            return
        position = positions.parse(sent.id)
        if self._log_identity is not None and position.identity != self._log_identity:
            raise Replaced
        known = self._resume is not None and position.sequence <= self._resume.sequence
        now = clocks.now()
        denials = self._denials if self._building is None else self._building
        denials.forget(now)
        self._log_identity = position.identity
        if not sent.type:  # the place that the stream starts from
            if not known:
                self._resume, self._resume_event, self._log_sequence = position, "", position.sequence
            return
        if known:
            return
        subject, stored_at, event_id = sent.about.split(" ", 2)
        raw = Raw(
            subject,
            {"ce-type": sent.type, "ce-id": sent.id},
            b"\n".join(sent.data),
            position.sequence,
            datetime.fromisoformat(stored_at).astimezone(UTC),
        )
        denials.apply(raw, now)
        self._resume, self._resume_event, self._log_sequence = position, event_id, position.sequence
        self._took(1, raw, now)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines as the format has them. httpx's own would break at characters that JSON may hold."""
    rest = b""
    async for chunk in response.aiter_raw():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > MAX_LINE_BYTES:
            message = f"a line of more than {MAX_LINE_BYTES} bytes"
            raise Unavailable(message)
