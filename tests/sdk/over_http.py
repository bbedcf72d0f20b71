"""The routes of the feed on a real HTTP server, in this process, from a real log."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import NamedTuple

import httpx
import uvicorn
from litestar import Litestar
from nats.aio.client import Client

from deploy.dev.servers import free_port
from door import front, roles
from door import serving as serving_of_the_house
from grantbook import positions, subjects
from grantbook.sdk.log import LogReader
from projector.api import revocations
from projector.feed import FeedHead, Receipts
from tests.sdk.given import new_id

TOKENS = {role: roles.new_token(role, bytes([number]) * 32) for number, role in enumerate(roles.ROLES)}
OTHER_FEED = roles.new_token("feed", b"o" * 32)
"""Of another token service than `TOKENS["feed"]`."""
KEYRING = roles.Keyring(
    (
        *(roles.entry(f"the-{role}", role, token) for role, token in TOKENS.items()),
        roles.entry("another-feed", "feed", OTHER_FEED),
    )
)
SECONDS = 20.0


class Served(NamedTuple):
    """The server, where it is, and what it reads from."""

    http: httpx.AsyncClient
    app: Litestar
    server: uvicorn.Server
    log: Client
    reader: LogReader
    url: str

    async def position(self, sequence: int) -> str:
        return str(positions.Position("log", (await self.reader.state()).identity, sequence))


@contextlib.asynccontextmanager
async def serving(log: Client, port: int | None = None) -> AsyncIterator[Served]:
    """A server that runs for as long as this is open. `port` to come back where one was before."""
    async with LogReader(log, subjects.LOG) as reader, LogReader(log, subjects.REVOCATIONS) as feed:
        app = front.litestar_app(
            revocations.FEED_ROUTES,
            name="test",
            keyring=KEYRING,
            mint_request_id=new_id,
            lifespan=[revocations.opened_streams],
            state={
                "reads": SimpleNamespace(
                    connection=log, log=reader, feed=feed, feed_head=FeedHead(feed), receipts=Receipts(log)
                )
            },
        )
        port = port or free_port()
        config = uvicorn.Config(
            app,
            http=serving_of_the_house._Guarded,
            port=port,
            log_config=None,
            access_log=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        async with asyncio.timeout(SECONDS):
            while not server.started:
                await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {TOKENS['feed']}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS) as http:
            yield Served(http, app, server, log, reader, url)
            app.state.streams.close()
        server.should_exit = True
        await task
