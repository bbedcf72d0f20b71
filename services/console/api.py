"""The two APIs that the console stands on, called over HTTP on behalf of the admin who is signed in.

Nothing is remembered between requests but connections.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

import httpx
import msgspec
from msgspec import Struct

from door.health import Readiness
from door.roles import ON_BEHALF_OF

READ_SECONDS: Final = 5.0
ACT_SECONDS: Final = 20.0
READY_SECONDS: Final = 3.0
STREAM_SECONDS: Final = 30.0
"""Between two pieces of a stream."""
MAX_CONNECTIONS: Final = 64
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
POSITION: Final = "Grantbook-Position"
NOT_YET: Final = "not_yet_applied"

T = TypeVar("T")
Query = Mapping[str, str | int | bool | Sequence[str] | None]


class Refused(Exception):
    """The API said no. `detail` is its own sentence, which repeats nothing that was sent."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, code, detail)
        self.status: Final = status
        self.code: Final = code
        self.detail: Final = detail


class Away(Exception):
    """One of the services cannot be reached, or cannot answer now. `service` says which, in words for a page.

    `heard`: what was asked may have been heard, and done.
    """

    def __init__(self, service: str, why: str, *, heard: bool = True) -> None:
        super().__init__(service, why)
        self.service: Final = service
        self.why: Final = why
        self.heard: Final = heard


class _Said(Struct):
    code: str = "unknown"
    detail: str = ""


class Answer(Struct, Generic[T], frozen=True):
    """What was read, the position that it holds for, and whether it may lack what the admin just did."""

    content: T
    position: str
    stale: bool = False


class Api:
    """Both APIs. `seen` is the position that reads shall have reached, where it can be waited for."""

    def __init__(self, http: httpx.AsyncClient, *, registry_url: str, projector_url: str, token: str) -> None:
        self._http = http
        self._registry = registry_url.rstrip("/")
        self._projector = projector_url.rstrip("/")
        self._authorization = f"Bearer {token}"

    async def read(
        self, admin: str, path: str, type_: type[T], query: Query | None = None, *, seen: str | None = None
    ) -> Answer[T]:
        """A page of a read model. Raises `Refused` and `Away`."""
        parameters = _parameters(query or {})
        awaited = {"at_least": seen} if seen else {}
        try:
            answer = await self._ask("GET", path, admin, parameters | awaited)
        except Refused as refused:
            if not seen or refused.code not in {NOT_YET, "invalid_parameter"}:
                raise
            # The read model is behind, or is of another log now: what it has is better than nothing, if it says so.
            answer = await self._ask("GET", path, admin, parameters)
            return Answer(_decoded(answer, type_), answer.headers.get(POSITION, ""), stale=True)
        return Answer(_decoded(answer, type_), answer.headers.get(POSITION, ""))

    async def act(self, admin: str, method: str, path: str, body: object = None) -> str:
        """Do something; the position at which it was recorded. Raises `Refused` and `Away`."""
        answer = await self.command(admin, method, path, body)
        return str(answer.headers.get(POSITION, ""))

    async def command(self, admin: str, method: str, path: str, body: object = None) -> httpx.Response:
        """The same, with the whole answer."""
        return await self._ask(method, path, admin, {}, body=body)

    async def _ask(
        self, method: str, path: str, admin: str, parameters: Mapping[str, Any], *, body: object = None
    ) -> httpx.Response:
        reads = method == "GET"
        service = "read API" if reads else "register"
        base = self._projector if reads else self._registry
        headers = self._headers(admin)
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        try:
            answer = await self._http.request(
                method,
                base + path,
                params=parameters,
                content=content,
                headers=headers,
                timeout=READ_SECONDS if reads else ACT_SECONDS,
                follow_redirects=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            heard = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise Away(service, type(error).__name__, heard=heard) from error
        if answer.is_success:
            return answer
        raise _trouble(answer, service)

    async def readiness(self) -> dict[str, Readiness | None]:
        """What each of the services says of itself, by its name in words; None where it does not answer."""
        asked = {"register": self._registry, "read API": self._projector}
        if self._registry == self._projector:
            asked = {"register and read API": self._registry}
        said = await asyncio.gather(*(self._readiness(base) for base in asked.values()))
        return dict(zip(asked, said, strict=True))

    async def _readiness(self, base: str) -> Readiness | None:
        try:
            answer = await self._http.get(f"{base}/readyz", timeout=READY_SECONDS, follow_redirects=False)
            return msgspec.json.decode(answer.content, type=Readiness)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    @asynccontextmanager
    async def lines(self, admin: str, path: str, query: Query) -> AsyncIterator[AsyncIterator[str]]:
        """A stream of JSON Lines, read as slowly as the browser takes it. Raises `Refused` and `Away`."""
        headers = self._headers(admin) | {"Accept": "application/x-ndjson"}
        timeout = httpx.Timeout(READ_SECONDS, read=STREAM_SECONDS)
        try:
            async with self._http.stream(
                "GET", self._projector + path, params=_parameters(query), headers=headers, timeout=timeout
            ) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise _trouble(answer, "read API")
                yield _lines(answer.aiter_bytes())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Away("read API", type(error).__name__) from error

    def _headers(self, admin: str) -> dict[str, str]:
        return {"Authorization": self._authorization, ON_BEHALF_OF: admin, "Accept-Encoding": "identity"}


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines as JSON Lines has them: text may hold what else counts as the end of a line elsewhere."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for each in whole:
            yield each.decode()
    if rest:
        yield rest.decode()


def connections() -> httpx.AsyncClient:
    """Connections for `Api`. Nothing of the environment (proxies) comes between services."""
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
    return httpx.AsyncClient(limits=limits, trust_env=False)


def _trouble(answer: httpx.Response, service: str) -> Exception:
    try:
        said = msgspec.json.decode(answer.content, type=_Said)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = _Said()
    if answer.status_code in {502, 503, 504} and said.code != NOT_YET:
        return Away(service, said.detail or f"it answers {answer.status_code}")
    if answer.status_code in {401, 403}:
        return Away(service, "it does not take the console's token: check GRANTBOOK_CONSOLE_TOKEN and its role")
    return Refused(answer.status_code, said.code, said.detail)


def _decoded(answer: httpx.Response, type_: type[T]) -> T:
    if len(answer.content) > MAX_ANSWER_BYTES:
        raise Away("read API", "its answer is too large")
    try:
        return msgspec.json.decode(answer.content, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Away("read API", "its answer is of another version than the console") from error


def _parameters(query: Query) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for name, value in query.items():
        if isinstance(value, bool):
            said[name] = "true" if value else "false"
        elif value is not None and value not in ("", [], ()):
            said[name] = value if isinstance(value, str | int) else list(value)
    return said
