"""A log on a real nats-server, with streams that are the test's own."""

import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uuid_utils
from litestar import Litestar
from nats.aio.client import Client

from door import roles
from grantbook import subjects
from grantbook.sdk import connection
from grantbook.sdk.log import LogReader
from registry import app, streams
from registry.commit import GroupCommit
from registry.settings import Policy, Settings
from registry.store import Log
from tests.registry.over_http import TOKENS, Http

MAX_BYTES = 256 * 1024 * 1024

_names = itertools.count()


def new_id() -> str:
    """A UUIDv7, as the composition root mints them."""
    return str(uuid_utils.uuid7())


@pytest.fixture
async def nats(nats_url: str) -> AsyncIterator[Client]:
    """A connection to an account that has the register's streams, empty."""
    client = await connection.connect(nats_url, name=f"test {next(_names)}")
    await streams.ensure(client, log_max_bytes=MAX_BYTES)
    yield client
    await client.close()


@pytest.fixture
async def reader(nats: Client) -> AsyncIterator[LogReader]:
    """The log, for reading."""
    async with LogReader(nats, subjects.LOG) as log:
        yield log


@pytest.fixture
async def log(nats: Client, reader: LogReader) -> AsyncIterator[Log]:
    """The log, for writing."""
    async with GroupCommit(nats, subjects.LOG) as commit:
        yield Log(reader, commit, new_id=new_id, jitter=random.random)


@pytest.fixture
async def other_log(nats_url: str, log: Log) -> AsyncIterator[Log]:
    """The same log, as another registry writes it."""
    assert log is not None
    client = await connection.connect(nats_url, name=f"test {next(_names)}")
    async with LogReader(client, subjects.LOG) as reader, GroupCommit(client, subjects.LOG) as commit:
        yield Log(reader, commit, new_id=new_id, jitter=random.random)
    await client.close()


@pytest.fixture
def policy() -> Policy:
    """What the operator decided about registration. A module that wants another has a fixture of this name."""
    return Policy()


@pytest.fixture(scope="session")
def application() -> Litestar:
    """The registry's application, which takes longer to make than most tests take. Tests want `http`."""
    entries = tuple(roles.entry(role, role, token) for role, token in TOKENS.items())
    return app.application(roles.Keyring(entries))


@pytest.fixture
async def http(
    application: Litestar, nats: Client, nats_url: str, tmp_path: Path, policy: Policy
) -> AsyncIterator[Http]:
    """The registry, over HTTP."""
    assert nats.is_connected
    settings = Settings(
        nats_url=nats_url,
        tokens_file=tmp_path / "tokens.json",  # which only who makes the application reads
        base_url="https://id.example",
        fanout=False,
        policy=policy,
    )
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)  # type: ignore[arg-type]  # the same protocol
    async with app.running(settings) as run, Http(transport=transport, base_url="http://testserver.local") as client:
        application.state.registry = run
        yield client
