"""Real servers for every test: one nats-server and one Postgres for each worker, made when first asked for.

What a test writes is its own: it gets a NATS account with no streams, and a database that is a copy of a template.
"""

import asyncio
import gc
import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import nats
import pytest

from deploy.dev.servers import Server, nats_cluster, nats_server, postgres_server, url_for
from tests.certificates import self_signed

ACCOUNTS: Final = 64
"""Used in turn, so that what a test leaves running finds nothing of the next 63."""
PASSWORD: Final = "password-of-tests"  # nats-py does not decode what a URL must encode
PASSWORDS: Final = {f"t{number}": PASSWORD for number in range(ACCOUNTS)}
TEMPLATE: Final = "grantbook_template"
STREAM_SECONDS: Final = 10.0

# Shells have what they start in the background ignore Ctrl-C, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count()


def pytest_collection_finish() -> None:
    """From here on garbage is looked for, among what tests make."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Nobody's certificate is the only authority, here and in what tests start: to read 140 takes 40 milliseconds.

    Until all tests are imported nothing becomes garbage, and what is imported stays: to look through it again and again
    would be a quarter of the time that collecting takes, in each process.
    """
    gc.disable()
    if hasattr(config, "workerinput"):
        return  # it has what the first process has
    folder = tempfile.TemporaryDirectory(prefix="grantbook-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["SSL_CERT_FILE"] = str(self_signed(Path(folder.name) / "nobody.pem", "nobody"))
    os.environ["SSL_CERT_DIR"] = os.devnull


@pytest.fixture(scope="session")
def nats_of_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The nats-server of this worker. Tests want `nats_url`; those that stop servers start their own."""
    with nats_server(tmp_path_factory.mktemp("nats") / "data", accounts=PASSWORDS, durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def nats_cluster_of_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A JetStream cluster of three nodes. Tests want `nats_cluster_urls`."""
    servers = nats_cluster(tmp_path_factory.mktemp("cluster"), accounts=PASSWORDS)
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Postgres of this worker, as its superuser. Tests want `database_url`."""
    data = tmp_path_factory.mktemp("postgres") / "data"
    with postgres_server(data, password=PASSWORD, durable=False) as server:
        yield server.url


@pytest.fixture
async def nats_url(nats_of_worker: Server) -> AsyncIterator[str]:
    """A NATS URL with user and password, of an account in which there is nothing."""
    url = url_for(nats_of_worker, next_account(), PASSWORD)
    yield url
    await delete_streams(url)


@pytest.fixture
async def nats_cluster_urls(nats_cluster_of_worker: list[Server]) -> AsyncIterator[list[str]]:
    """The URLs of three nodes, of an account in which there is nothing."""
    account = next_account()
    urls = [url_for(server, account, PASSWORD) for server in nats_cluster_of_worker]
    yield urls
    await delete_streams(urls[0])


@pytest.fixture(scope="session")
def template_of_worker(postgres_url: str) -> str:
    """The name of the database that each test gets a copy of."""
    asyncio.run(template_database(postgres_url))
    return TEMPLATE


@pytest.fixture
async def database_url(postgres_url: str, template_of_worker: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, made from the template, and dropped afterwards."""
    name = f"test_{next(_numbers)}"
    await execute(postgres_url, f"create database {name} template {template_of_worker} strategy file_copy")
    yield with_database(postgres_url, name)
    await execute(postgres_url, f"drop database {name} with (force)")


def next_account() -> str:
    """The name of the account whose turn it is."""
    return f"t{next(_numbers) % ACCOUNTS}"


async def template_database(server_url: str) -> None:
    """Make the database that each test gets a copy of."""
    await execute(server_url, f"create database {TEMPLATE}")


def with_database(url: str, name: str) -> str:
    """The same URL for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, sql: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def delete_streams(url: str) -> None:
    """Delete every stream of the account, key-value buckets included."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        stream_manager = client.jetstream(timeout=STREAM_SECONDS)
        while names := [info.config.name for info in await stream_manager.streams_info()]:
            for name in names:
                assert name is not None
                await stream_manager.delete_stream(name)
    finally:
        await client.close()
