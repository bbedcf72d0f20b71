import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from nats.aio.client import Client

from door import roles
from grantbook import subjects
from grantbook.sdk.connection import connect
from projector import app, db, run
from projector.api.revocations import OpenStreams
from projector.db import Connection
from projector.reads import Reads
from projector.run import Sources
from projector.settings import Settings
from registry import streams
from tests.conftest import execute, with_database

WAIT_SECONDS = 30.0
POLL_SECONDS = 0.02
TOKENS = {role: roles.new_token(role, bytes([number]) * 32) for number, role in enumerate(roles.ROLES)}
KEYRING = roles.Keyring(tuple(roles.entry(f"the-{role}", role, token) for role, token in TOKENS.items()))


class Api:
    """The read API, called over ASGI. Each answer is waited for at the last position written."""

    def __init__(self, http: httpx.AsyncClient, log: Client) -> None:
        self.http = http
        self._log = log

    async def get(self, path: str, *, answers: int = 200, role: roles.Role = "admin", **query: Any) -> Any:
        answer = await self.ask(path, role=role, **query)
        assert answer.status_code == answers, answer.text
        return answer.json()

    async def audit(self, path: str, *, answers: int = 200, **query: Any) -> Any:
        return await self.get(path, answers=answers, role="auditor", **query)

    async def ask(
        self, path: str, *, role: roles.Role = "admin", headers: dict[str, str] | None = None, **query: Any
    ) -> httpx.Response:
        return await self.http.get(
            path,
            params={name.rstrip("_"): value for name, value in query.items()},
            headers={"Authorization": f"Bearer {TOKENS[role]}"} | (headers or {}),
        )


@pytest.fixture
async def log(nats_url: str) -> AsyncIterator[Client]:
    """A connection to a NATS that has the register's streams, empty."""
    connection = await connect(nats_url, name="test")
    await streams.ensure(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def sources(log: Client) -> AsyncIterator[Sources]:
    """What a projector reads from."""
    async with app.opened_sources(log) as sources:
        yield sources


async def template(postgres_url: str, name: str, of: str, make: Callable[[Connection], Awaitable[None]]) -> str:
    """A template that is another one, and what `make` does to it. Its name."""
    await execute(postgres_url, f"create database {name} template {of}")
    connection = await db.connect(with_database(postgres_url, name), db.SCHEMA, name="test")
    await make(connection)
    await connection.close()
    return name


@pytest.fixture(scope="session")
def template_of_worker(postgres_url: str, template_of_worker: str) -> str:
    """A template that has the read models, empty."""

    async def make(database: Connection) -> None:
        await db.ensure_schema(database, db.SCHEMA)

    return asyncio.run(template(postgres_url, "read_models", template_of_worker, make))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the read models, which are there and empty."""
    connection = await db.connect(database_url, db.SCHEMA, name="test")
    yield connection
    connection.terminate()


@asynccontextmanager
async def projecting(database_url: str, sources: Sources) -> AsyncIterator[None]:
    """A projector at work."""
    task = asyncio.create_task(run.project(database_url, sources))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def projected(database: Connection, database_url: str, sources: Sources) -> AsyncIterator[None]:
    """A projector at work for the whole test."""
    async with projecting(database_url, sources):
        yield


@pytest.fixture
async def settings(nats_url: str, database_url: str, tmp_path: Path) -> Settings:
    """Settings of a projector on the test's servers."""
    return Settings(nats_url=nats_url, database_url=database_url, tokens_file=tmp_path / "tokens.json")


@pytest.fixture
async def reads(settings: Settings, log: Client, database: Connection) -> AsyncIterator[Reads]:
    """What routes read with."""
    async with app.opened_reads(settings) as reads:
        yield reads


@pytest.fixture(scope="session")
def application() -> Litestar:
    """The read API, which takes longer to make than most tests take. Tests want `api`."""
    return app.application(KEYRING)


@pytest.fixture
async def api(application: Litestar, reads: Reads, log: Client) -> AsyncIterator[Api]:
    """The read API."""
    application.state.update({"reads": reads, "streams": OpenStreams()})
    transport = httpx.ASGITransport(application)  # type: ignore[arg-type]  # the same protocol, named otherwise
    async with httpx.AsyncClient(transport=transport, base_url="http://grantbook.test") as http:
        yield Api(http, log)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_SECONDS
    while not await condition():
        assert loop.time() < deadline, f"waited {WAIT_SECONDS} s in vain for {what}"
        await asyncio.sleep(POLL_SECONDS)


async def caught_up(database: Connection, log: Client) -> None:
    """Wait until all that was written is applied."""
    for read_model, stream in (("log", subjects.LOG), ("activity", subjects.ACTIVITY)):
        head = (await log.jetstream().stream_info(stream)).state.last_seq

        async def reached(read_model: db.ReadModel = read_model, head: int = head) -> bool:  # type: ignore[assignment]
            row = await database.fetchrow("SELECT sequence, halted FROM checkpoints WHERE read_model = $1", read_model)
            assert row is not None
            assert row["halted"] is None, row["halted"]
            return bool(row["sequence"] >= head)

        await until(reached, f"the {read_model} to reach {head}")


async def halted(database: Connection, read_model: str = "log") -> str:
    """Wait until the read model has halted. Why it did."""

    async def has() -> bool:
        return bool(
            await database.fetchval("SELECT halted IS NOT NULL FROM checkpoints WHERE read_model = $1", read_model)
        )

    await until(has, "a halt")
    return str(await database.fetchval("SELECT halted FROM checkpoints WHERE read_model = $1", read_model))
