"""What the tests of this folder have: a transmitter on a real HTTP server, and a receiver that it pushes to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jwt
import uvicorn
from litestar import Litestar, Request, Response, get, post
from msgspec import structs

from deploy.dev.servers import free_port
from door import roles
from transmitter import app
from transmitter.service import Service
from transmitter.settings import Settings

IDP = "https://idp.example"
RECEIVERS = ("mail", "files")
SECONDS = 20.0
POLL_SECONDS = 0.02


def token_of_receiver(name: str) -> str:
    return roles.new_token("feed", name.encode().ljust(32, b"."))


def written_tokens(folder: Path) -> Path:
    file = folder / "tokens.json"
    entries = [roles.entry(name, "feed", token_of_receiver(name)) for name in RECEIVERS]
    entries.append(roles.entry("root", "admin", token_of_receiver("root")))
    roles.write(file, roles.TokenFile(tokens=tuple(entries)))
    return file


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def served(application: Any, port: int, **options: Any) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(application, port=port, log_config=None, access_log=False, ws="none", **options)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    try:
        yield server
    finally:
        server.should_exit = True
        await task


class Receiver:
    """Takes SETs by push (RFC 8935) where it is told to, and remembers all that came."""

    def __init__(self) -> None:
        self.port = free_port()
        self.tokens: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[str], Response[Any]] = lambda _: Response(None, status_code=202)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [unverified(each) for each in self.tokens]

    @contextlib.asynccontextmanager
    async def listening(self, **options: Any) -> AsyncIterator[None]:
        @post("/events", status_code=202)
        async def take(request: Request[Any, Any, Any]) -> Response[Any]:
            token = (await request.body()).decode()
            self.headers.append(dict(request.headers))
            answer = self.answer(token)
            if answer.status_code == 202:
                self.tokens.append(token)
            return answer

        @get("/elsewhere")
        async def elsewhere() -> str:
            return ""

        async with served(Litestar([take, elsewhere], openapi_config=None), self.port, **options):
            yield


class Transmitter(NamedTuple):
    """A transmitter that serves, and its HTTP as each receiver calls it."""

    app: Litestar
    url: str
    mail: httpx.AsyncClient
    files: httpx.AsyncClient

    @property
    def service(self) -> Service:
        service: Service = self.app.state.transmitter
        return service

    async def jwks(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.mail.get("/ssf/v1/jwks.json")).json()
        return found

    async def poll(self, stream_id: str, **asked: Any) -> dict[str, str]:
        """One poll of `mail`; its SETs."""
        answer = await self.mail.post(f"/ssf/v1/streams/{stream_id}/poll", json={"returnImmediately": True} | asked)
        assert answer.status_code == 200, answer.text
        sets: dict[str, str] = answer.json()["sets"]
        return sets

    async def polled(self, stream_id: str, count: int) -> dict[str, str]:
        """All SETs that are there, once there are so many, and none acknowledged."""
        async with asyncio.timeout(SECONDS):
            while len(sets := await self.poll(stream_id)) < count:
                await asyncio.sleep(POLL_SECONDS)
        return sets

    async def stream(self, **asked: Any) -> dict[str, Any]:
        """A new stream of `mail`."""
        answer = await self.mail.post("/ssf/v1/streams", json=asked)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def pushed_to(self, receiver: Receiver, **delivery: Any) -> dict[str, Any]:
        """A new stream of `mail` that is pushed to the receiver."""
        return await self.stream(delivery={"method": "urn:ietf:rfc:8935", "endpoint_url": receiver.url, **delivery})

    async def set_status(self, stream_id: str, status: str) -> None:
        answer = await self.mail.post("/ssf/v1/status", json={"stream_id": stream_id, "status": status})
        assert answer.status_code == 200, answer.text


@contextlib.asynccontextmanager
async def transmitting(nats_url: str, folder: Path, **chosen: Any) -> AsyncIterator[Transmitter]:
    """A transmitter that runs for as long as this is open."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings(
        nats_url=nats_url,
        tokens_file=written_tokens(folder),
        issuer=url,
        subject_issuer=IDP,
        signing_keys_file=folder / "signing.json",
        sealing_key_file=folder / "sealing.key",
        development=True,
    )
    application = app.create_app(structs.replace(settings, **chosen))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(served(application, port, lifespan="on"))
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=url, timeout=SECONDS, headers={"Authorization": f"Bearer {token_of_receiver(name)}"}
                )
            )
            for name in RECEIVERS
        ]
        stack.callback(app.end_polls, application)
        yield Transmitter(application, url, *clients)


def unverified(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def verified(token: str, jwks: dict[str, Any], *, audience: str, issuer: str) -> dict[str, Any]:
    """Claims of a SET, as a receiver checks it with PyJWT."""
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "secevent+jwt"
    key = jwt.PyJWKSet.from_dict(jwks)[header["kid"]]
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256", "RS256"], audience=audience, issuer=issuer)
    return claims
