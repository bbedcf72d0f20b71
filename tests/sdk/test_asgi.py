"""The middleware, in front of real frameworks on a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import fastapi
import httpx
import litestar
import pytest
import starlette.applications
import starlette.requests
import starlette.responses
import starlette.routing
import starlette.websockets
import uvicorn
from litestar.middleware import DefineMiddleware
from nats.aio.client import Client

from deploy.dev.servers import free_port
from grantbook.sdk import revocations
from grantbook.sdk.asgi import ACCESS, App, Message, RevocationMiddleware, Scope, bearer_token
from grantbook.sdk.revocations import RevocationFeed
from grantbook.sdk.tokens import JwtVerifier
from tests.sdk.given import LIFETIME, deleted, revoked, write
from tests.sdk.tokens import AUDIENCE, ISSUER, KEYS, token

SECONDS = 20.0
EVENTS = "/stream?type=text/event-stream"
pytestmark = pytest.mark.timeout(60)


class Heard:
    """What a reporter was told."""

    def __init__(self) -> None:
        self.uses: list[tuple[str, str, str]] = []

    def report(self, client_id: str, grant_id: str, kind: str) -> None:
        self.uses.append((client_id, grant_id, kind))


@pytest.fixture
async def feed(log: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RevocationFeed]:
    monkeypatch.setattr(revocations, "SETTLE_SECONDS", 0.0)
    async with RevocationFeed(nats_url, LIFETIME) as opened:
        yield opened


def verifier() -> JwtVerifier:
    return JwtVerifier(issuer=ISSUER, audience=AUDIENCE, keys=KEYS)


def in_starlette(**settings: Any) -> App:
    async def whoami(request: starlette.requests.Request) -> starlette.responses.Response:
        assert request.state.grantbook_access is request.scope[ACCESS]
        return starlette.responses.JSONResponse(request.scope[ACCESS].client_id)

    async def stream(request: starlette.requests.Request) -> starlette.responses.Response:
        async def drip() -> AsyncIterator[str]:
            while True:
                yield "data: x\n\n"
                await asyncio.sleep(0.02)

        return starlette.responses.StreamingResponse(drip(), media_type=request.query_params["type"])

    async def slow(request: starlette.requests.Request) -> starlette.responses.Response:
        await asyncio.sleep(SECONDS)
        return starlette.responses.JSONResponse("late")

    app = starlette.applications.Starlette(
        routes=[
            starlette.routing.Route("/whoami", whoami, methods=["GET", "POST"]),
            starlette.routing.Route("/stream", stream),
            starlette.routing.Route("/slow", slow),
            starlette.routing.Route("/open", lambda _: starlette.responses.JSONResponse("all")),
        ]
    )
    app.add_middleware(RevocationMiddleware, **settings)
    return app


def in_fastapi(**settings: Any) -> App:
    app = fastapi.FastAPI()

    @app.get("/whoami")
    async def whoami(request: fastapi.Request) -> str:
        assert request.state.grantbook_access is request.scope[ACCESS]
        return str(request.scope[ACCESS].client_id)

    app.add_middleware(RevocationMiddleware, **settings)
    return app


def in_litestar(**settings: Any) -> App:
    @litestar.get("/whoami")
    async def whoami(request: litestar.Request[Any, Any, Any]) -> str:
        assert request.state.grantbook_access.client_id in {"c", "other"}
        return str(request.scope[ACCESS].client_id)  # type: ignore[typeddict-item]

    return litestar.Litestar([whoami], middleware=[DefineMiddleware(RevocationMiddleware, **settings)])  # type: ignore[return-value, arg-type]


@contextlib.asynccontextmanager
async def served(app: App) -> AsyncIterator[httpx.AsyncClient]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False, ws="none"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as http:
            yield http
    finally:
        server.should_exit = True
        await task


async def read_on(lines: AsyncIterator[str]) -> None:
    async with asyncio.timeout(SECONDS):
        async for _ in lines:
            pass


def as_(made: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {made}"}


@pytest.mark.parametrize("framework", [in_starlette, in_fastapi, in_litestar])
async def test_a_revoked_grant_is_refused_on_its_next_call(
    framework: Callable[..., App], feed: RevocationFeed, log: Client
) -> None:
    """Users, in whichever framework their data is served: what was cut off is off, what was not goes on."""
    heard = Heard()
    async with served(framework(feed=feed, verifier=verifier(), activity=heard)) as http:
        mine, others = token(), token(client_id="other")
        for made, client in ((mine, "c"), (others, "other")):
            answer = await http.get("/whoami", headers=as_(made))
            assert (answer.status_code, client in answer.text) == (200, True)
        await write(log, revoked("c", "g"))
        async with asyncio.timeout(SECONDS):
            while (answer := await http.get("/whoami", headers=as_(mine))).status_code == 200:
                pass
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert answer.json() == {"error": "invalid_token"}
        assert (await http.get("/whoami", headers=as_(others))).status_code == 200
    assert {("c", "g", "tool_call"), ("other", "g", "tool_call")} == set(heard.uses)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Basic YTpi")],
        [("Authorization", "Bearer a b")],
        [("Authorization", "x" * 30_000)],
        [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token()}")],
    ],
)
async def test_without_one_token_there_is_a_challenge_and_no_error(
    headers: list[tuple[str, str]], feed: RevocationFeed
) -> None:
    """RFC 6750 section 3.1 and RFC 9728 section 5.1: agents learn where to begin."""
    where = "https://mcp.example/.well-known/oauth-protected-resource"
    app = in_starlette(feed=feed, verifier=verifier(), resource_metadata=where, exempt=["/open"])
    async with served(app) as http:
        answer = await http.get("/whoami", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == f'Bearer resource_metadata="{where}"'
        assert (await http.get("/open")).status_code == 200
        assert (await http.head("/whoami")).status_code == 401


async def test_nobody_knows_is_not_the_agents_fault(feed: RevocationFeed) -> None:
    """Agents: 503 while the issuer's keys cannot be had. They would throw a good token away at a 401."""
    away = JwtVerifier(issuer=ISSUER, audience=AUDIENCE, jwks_url=f"http://127.0.0.1:{free_port()}/keys")
    async with served(in_starlette(feed=feed, verifier=away)) as http:
        answer = await http.get("/whoami", headers=as_(token()))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    await away.aclose()


async def test_a_stream_that_is_open_ends_when_its_grant_does(feed: RevocationFeed, log: Client) -> None:
    """Users: an agent that listens is cut off, too, and not only on its next call."""
    app = in_starlette(feed=feed, verifier=verifier(), recheck_seconds=0.05)
    async with served(app) as http:
        async with http.stream("GET", EVENTS, headers=as_(token())) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == "data: x"
            await write(log, deleted("c"))
            await read_on(lines)
        assert (await http.get(EVENTS, headers=as_(token()))).status_code == 401
        async with http.stream("GET", EVENTS, headers=as_(token(client_id="other"))) as answer:
            assert answer.status_code == 200


async def test_a_download_that_was_cut_off_does_not_look_whole(feed: RevocationFeed, log: Client) -> None:
    """Users of a file that an agent fetched: half of it is not taken for all of it."""
    app = in_starlette(feed=feed, verifier=verifier(), recheck_seconds=0.05)
    async with served(app) as http, http.stream("GET", "/stream?type=text/csv", headers=as_(token())) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: x"
        await write(log, revoked("c", "g"))
        with pytest.raises(httpx.RemoteProtocolError):
            await read_on(lines)


async def test_an_application_that_will_not_end_is_heard_no_more(feed: RevocationFeed, log: Client) -> None:
    """Users: an application that goes on when it is told to end gives nothing more out."""

    async def stubborn(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            await send({"type": "http.response.body", "body": b"secret"})
            raise RuntimeError("and fails")

    socket = Socket((b"authorization", f"Bearer {token()}".encode()))
    app = RevocationMiddleware(stubborn, feed=feed, verifier=verifier(), recheck_seconds=0.02)
    running = asyncio.create_task(app({**socket.scope, "type": "http", "method": "GET"}, socket.receive, socket.send))
    assert (await socket.sent.get())["status"] == 200
    await write(log, revoked("c", "g"))
    async with asyncio.timeout(SECONDS):
        await running
    assert socket.sent.empty()


async def test_a_call_under_way_is_refused_when_its_grant_ends(feed: RevocationFeed, log: Client) -> None:
    """Users: a call that began before the revocation gives nothing out after it."""
    heard = Heard()
    app = in_starlette(feed=feed, verifier=verifier(), activity=heard, recheck_seconds=0.05)
    async with served(app) as http:
        calling = asyncio.create_task(http.get("/slow", headers=as_(token())))
        async with asyncio.timeout(SECONDS):
            while not heard.uses:  # it was let through
                await asyncio.sleep(0.01)
        await write(log, revoked("c", "g"))
        assert (await calling).status_code == 401


async def test_a_token_that_expires_ends_its_stream(feed: RevocationFeed) -> None:
    """Users: a stream lasts no longer than the token that opened it."""
    now = 1_000.0
    app = in_starlette(feed=feed, verifier=verifier(), recheck_seconds=0.05, clock=lambda: now)
    async with served(app) as http, http.stream("GET", EVENTS, headers=as_(token())) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: x"
        now = 1e11
        await read_on(lines)


class Socket:
    """A websocket connection, as an ASGI server has it."""

    def __init__(self, *headers: tuple[bytes, bytes], extensions: dict[str, Any] | None = None) -> None:
        self.scope: Scope = {
            "type": "websocket",
            "path": "/ws",
            "headers": list(headers),
            "extensions": extensions or {},
        }
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._received.put_nowait({"type": "websocket.connect"})

    async def receive(self) -> Message:
        return await self._received.get()

    async def send(self, message: Message) -> None:
        self.sent.put_nowait(message)


async def accepting(scope: Scope, receive: Any, send: Any) -> None:
    """An application that keeps its sockets open."""
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


@pytest.mark.parametrize("can_answer", [True, False])
async def test_a_socket_without_a_token_is_refused(feed: RevocationFeed, can_answer: bool) -> None:
    """Users: a socket is a call like any other."""
    app = RevocationMiddleware(accepting, feed=feed, verifier=verifier())
    socket = Socket(extensions={"websocket.http.response": {}} if can_answer else None)
    await app(socket.scope, socket.receive, socket.send)
    first = socket.sent.get_nowait()
    if can_answer:
        assert (first["type"], first["status"]) == ("websocket.http.response.start", 401)
    else:
        assert (first["type"], first["code"]) == ("websocket.close", 1008)


async def test_an_open_socket_is_closed_when_its_grant_ends(feed: RevocationFeed, log: Client) -> None:
    """Users: the same for an agent that listens on a socket."""
    app = RevocationMiddleware(accepting, feed=feed, verifier=verifier(), recheck_seconds=0.02)
    socket = Socket((b"authorization", f"Bearer {token()}".encode()))
    running = asyncio.create_task(app(socket.scope, socket.receive, socket.send))
    assert (await socket.sent.get())["type"] == "websocket.accept"
    await write(log, revoked("c", "g"))
    async with asyncio.timeout(SECONDS):
        assert await socket.sent.get() == {"type": "websocket.close", "code": 1008}
    await running


async def test_what_is_no_request_passes(feed: RevocationFeed) -> None:
    """Operators: start and stop of the application are no calls."""
    seen = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await RevocationMiddleware(app, feed=feed, verifier=verifier())(
        {"type": "lifespan"}, Socket().receive, Socket().send
    )
    assert seen == ["lifespan"]


async def test_a_stale_feed_lets_nobody_in(log: Client, nats_url: str) -> None:
    """Users: a service that cannot know denies. Agents: 503, so that they do not throw a good token away."""
    async with RevocationFeed(nats_url, LIFETIME, max_staleness=timedelta(seconds=60)) as feed:
        pass
    app = in_starlette(feed=feed, verifier=verifier())
    async with served(app) as http:
        answer = await http.get("/whoami", headers=as_(token()))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc", b"  BEARER   abc  "])
def test_a_bearer_token_is_found_as_the_standard_has_it(value: bytes) -> None:
    """RFC 9110 section 11.1: the scheme's case does not matter."""
    assert bearer_token({"headers": [(b"authorization", value)]}) == "abc"
    assert bearer_token({"headers": [(b"authorization", b"Bearer ")]}) is None
    assert bearer_token({"headers": [(b"authorization", b"Bearer \xff")]}) is None


def test_a_url_that_would_break_the_challenge_is_refused(feed: RevocationFeed) -> None:
    """Operators: a typing error does not become a header of somebody's making."""
    for wrong in ('https://x/"', "https://x/\n", "https://é/"):
        with pytest.raises(ValueError, match="resource_metadata"):
            RevocationMiddleware(accepting, feed=feed, verifier=verifier(), resource_metadata=wrong)
